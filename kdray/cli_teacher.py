"""`kdray teacher ...`: local teachers to try kdray with, trained here and served as the black boxes they stand for."""

import os
from pathlib import Path
from typing import Annotated

import typer

from kdray.cli_parts import ConfigArgument, Overrides, told

teacher_app = typer.Typer(help="Local teachers to try kdray with.", no_args_is_help=True)


@teacher_app.command("train")
def teacher_train_command(
    config: ConfigArgument,
    overrides: Overrides = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Train on so many of its images, drawn at random: a weak teacher.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again and overwrite the weights.")] = False,
) -> None:
    """Train the local teacher of a config by its recipe (teacher.train) and write teacher.weights."""
    with told():
        from kdray.config_file import load_config
        from kdray.display import make_display
        from kdray.errors import TeacherError
        from kdray.inputs import read_labelled, resolve
        from kdray.teachers.build import measure_teacher, train_teacher

        parsed = resolve(load_config(config, overrides or []))
        teacher = parsed.teacher
        own = teacher.kind == "local" and teacher.train is not None and teacher.train.images is not None
        if count is not None and teacher.kind == "local" and teacher.train is not None:
            which = "teacher.train.images.count" if own else "labelled.count"
            parsed = resolve(load_config(config, [*(overrides or []), f"{which}={count}"]))
            teacher = parsed.teacher
        if teacher.kind != "local":
            raise TeacherError(f"teacher.kind is {teacher.kind!r}: only a local teacher can be trained here")
        if Path(teacher.weights).exists() and not force:
            raise TeacherError(f"teacher.weights: {teacher.weights} is there already; give --force to train it again")
        display = make_display()
        try:
            train_teacher(
                teacher,
                lambda done, loss: display.progress(done, teacher.train.epochs),
                labelled=None if own else read_labelled(parsed, "labelled"),
            )
        finally:
            display.close()
        print(f"wrote {teacher.weights}")
        if parsed.test is not None:
            print(f"accuracy on the test set: {measure_teacher(teacher, parsed.test):.2%}")


@teacher_app.command("serve")
def teacher_serve_command(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML whose teacher is served.")] = None,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="In place of CONFIG: weights that kdray wrote.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    name: Annotated[str, typer.Option(help="The model's name in the address.")] = "teacher",
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the bearer token to demand.")] = None,
    latency: Annotated[float, typer.Option(help="Seconds added to every reply.")] = 0.0,
    quota: Annotated[int | None, typer.Option(help="Images answered in all; then 429.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second; above it 429.")] = None,
    error_rate: Annotated[float, typer.Option(help="Share of requests that fail: 503, 500, or a reset.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the failures.")] = 0,
) -> None:
    """Serve a local teacher over HTTP (Open Inference Protocol v2), as a black box to try kdray against."""
    with told():
        from kdray.errors import ConfigError, TeacherError
        from kdray.teachers.serve import ServeOptions, serve

        if (config is None) == (model is None):
            raise ConfigError("give a CONFIG, or --model with weights that kdray wrote")
        token = None
        if token_env is not None and not (token := os.environ.get(token_env)):
            raise TeacherError(f"--token-env: the environment variable {token_env} is not set")
        options = ServeOptions(
            name=name,
            port=port,
            token=token,
            latency_s=latency,
            quota=quota,
            requests_per_s=rate,
            error_rate=error_rate,
            seed=seed,
        )
        teacher, shape, classes = _of_weights(model) if model else _of_config(config, overrides or [])
        serve(
            teacher,
            shape,
            options,
            classes,
            on_ready=lambda url: print(f"serving {teacher.num_classes} classes at {url}/v2/models/{name}", flush=True),
        )


def _of_weights(path: Path):
    """Teacher, image shape and class names of a file that kdray wrote."""
    from kdray.config import LocalTeacher
    from kdray.errors import TeacherError
    from kdray.students.export import read_card
    from kdray.teachers.build import build_teacher

    card = read_card(path) if path.is_file() else None
    if card is None:
        raise TeacherError(f"--model: {path} holds no weights that kdray wrote; for other models give a CONFIG")
    teacher = build_teacher(LocalTeacher(kind="local", model=card.model, weights=str(path)), card.image_shape)
    return teacher, card.image_shape, card.classes


def _of_config(path: Path, overrides: list[str]):
    """Teacher, image shape and class names of a config; its images say the shape."""
    from kdray.config_file import load_config
    from kdray.errors import TeacherError
    from kdray.images import read_images
    from kdray.inputs import resolve
    from kdray.seeds import numpy_generator
    from kdray.teachers.build import build_teacher
    from kdray.teachers.local import class_names

    config = resolve(load_config(path, overrides))
    if config.teacher.kind == "http":
        raise TeacherError("teacher.kind is 'http': it is served already; only a local or python teacher can be")
    images = read_images(config.images, generator=numpy_generator(config.seed, "images"))
    return (
        build_teacher(config.teacher, images.image_shape, os.getcwd()),
        images.image_shape,
        class_names(config.teacher),
    )
