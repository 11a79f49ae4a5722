"""`kdray serve`: a student behind the protocol of its teacher."""

import os
from pathlib import Path
from typing import Annotated

import typer

from kdray.cli.common import exit_on_error


def serve_command(
    where: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run directory, or a model file of kdray's.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="The model's name in the address.")] = "student",
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the bearer token to demand.")] = None,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Divide the logits by it, see 'kdray evaluate'.")
    ] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a forward pass.")] = 1,
) -> None:
    """Serve the student over HTTP with the Open Inference Protocol v2, as its teacher may have been."""
    with exit_on_error():
        from kdray.errors import ConfigError
        from kdray.runs.serving import student_to_serve
        from kdray.teachers.server import ServeOptions, serve
        from kdray.utils.files import expand

        token = None
        if token_env is not None and not (token := os.environ.get(token_env)):
            raise ConfigError(f"--token-env: the environment variable {token_env} is not set")
        options = ServeOptions(name=name, host=host, port=port, token=token)
        student, shape, classes = student_to_serve(expand(where), temperature, threads)
        serve(
            student,
            shape,
            options,
            classes,
            on_ready=lambda url: print(f"serving {student.num_classes} classes at {url}/v2/models/{name}", flush=True),
        )
