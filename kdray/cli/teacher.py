"""`kdray teacher ...`: local teachers to try kdray with, trained here and served as the black boxes they stand for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import ConfigArgument, OnceCommand, Overrides, exit_on_error

if TYPE_CHECKING:
    from kdray.teachers import Teacher

    _Served = tuple[Teacher, tuple[int, int, int], tuple[str, ...] | None]

teacher_app = typer.Typer(help="Local teachers to try kdray with.", no_args_is_help=True)


_ONE_OF_BOTH = "give a CONFIG, or --model with weights that kdray wrote"


@teacher_app.command("train", cls=OnceCommand)
def teacher_train_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Train on so many of its images, drawn at random: a weak teacher.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again and overwrite the weights.")] = False,
) -> None:
    """Train the local teacher of a config by its recipe (teacher.train) and write teacher.weights."""
    with exit_on_error():
        from kdray.config.load import load_config

        parsed = load_config(config, overrides or [])  # before the next imports, which bring torch

        from kdray.observers.display import make_display
        from kdray.runs.teachers import count_field, train_by_recipe
        from kdray.utils.files import shown

        if count is not None and (field := count_field(parsed)) is not None:
            parsed = load_config(config, [*(overrides or []), f"{field}={count}"])
        display = make_display()
        try:
            weights, accuracy = train_by_recipe(parsed, force=force, observer=display)
        finally:
            display.close()
        print(f"wrote {shown(weights)}")
        if accuracy is not None:
            print(f"accuracy on the test set: {accuracy:.2%}")


@teacher_app.command("serve", cls=OnceCommand)
def teacher_serve_command(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML whose teacher is served.")] = None,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="In place of CONFIG: weights that kdray wrote.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    name: Annotated[str, typer.Option(help="The model's name in the address.")] = "teacher",
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the bearer token to demand.")] = None,
    latency: Annotated[float, typer.Option(help="Seconds added to every reply.")] = 0.0,
) -> None:
    """Serve a local teacher over HTTP (Open Inference Protocol v2), as a black box to try kdray against."""
    with exit_on_error():
        from kdray.config.load import load_config
        from kdray.errors import ConfigError, TeacherError
        from kdray.runs.teachers import teacher_of_config, teacher_of_weights
        from kdray.teachers.server import ServeOptions, serve
        from kdray.utils.files import expand

        if config is not None and model is not None:
            raise ConfigError(_ONE_OF_BOTH)
        token = None
        if token_env is not None and not (token := os.environ.get(token_env)):
            raise TeacherError(f"--token-env: the environment variable {token_env} is not set")
        options = ServeOptions(name=name, port=port, token=token, latency_s=latency)
        if model is not None:
            teacher, shape, classes = teacher_of_weights(expand(model))
        elif config is not None:
            teacher, shape, classes = teacher_of_config(load_config(config, overrides or []))
        else:
            raise ConfigError(_ONE_OF_BOTH)
        serve(
            teacher,
            shape,
            options,
            classes,
            on_ready=lambda url: print(f"serving {teacher.num_classes} classes at {url}/v2/models/{name}", flush=True),
        )
