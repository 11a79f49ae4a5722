"""`kdray bench`: what this machine can do."""

import sys
from typing import Annotated, Literal

import typer

from kdray.cli.common import OnceCommand, exit_on_error, output_width

bench_app = typer.Typer(help="Measure what this machine can do.", no_args_is_help=True)


@bench_app.command("score", cls=OnceCommand)
def score_command(
    model: Annotated[str, typer.Option(help="The student, a network of the zoo.")] = "lenet5",
    images: Annotated[int, typer.Option(help="Random images the pool mixes.")] = 2000,
    shape: Annotated[str, typer.Option(help="Channels, height and width of an image.")] = "1x28x28",
    workers: Annotated[int | None, typer.Option(min=1, help="Scoring workers; default: one a CPU.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a worker; may be a fraction.")] = 0.0,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the student's arithmetic.")
    ] = "auto",
    compile: Annotated[Literal["auto", "on", "off"], typer.Option(help="Compile the student.")] = "auto",
    mixing: Annotated[
        Literal["auto", "pixels", "first-layer"], typer.Option(help="Where candidates are mixed, as pool.mixing.")
    ] = "auto",
    pool: Annotated[
        str,
        typer.Option(help="The pool, as in a config: its kind, or a section such as '{kind: pairs, blend: cutmix}'."),
    ] = "mixup",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement, about.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each kind.")] = 3,
) -> None:
    """Candidates a second that are scored on Ray, beside the bare forward pass; memory; one worker against several."""
    with exit_on_error():
        from rich.table import Table
        from rich.text import Text

        from kdray.runs.bench import ForwardOptions, Setting, default_workers, lines, measure, parse_pool, parse_shape
        from kdray.utils.console import make_console

        setting = Setting(
            model=model,
            images=images,
            shape=parse_shape(shape),
            workers=workers or default_workers(),
            seconds=seconds,
            repeats=repeats,
            gpus=gpus,
            options=ForwardOptions(precision=precision, compile=compile, mixing=mixing),
            pool=parse_pool(pool),
        )
        table = Table(show_header=False, box=None)
        for name, value in lines(setting, measure(setting, lambda text: print(text, file=sys.stderr, flush=True))):
            table.add_row(Text(name, "bold"), value)
        make_console(width=output_width()).print(table)


@bench_app.command("train", cls=OnceCommand)
def train_command(
    model: Annotated[str, typer.Option(help="The student, a network of the zoo.")] = "lenet5",
    shape: Annotated[str, typer.Option(help="Channels, height and width of an image.")] = "1x28x28",
    augment: Annotated[str, typer.Option(help="Kind of augmentation, as student.augment.")] = "affine",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step; default: the student's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the forward pass, as student.precision.")
    ] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the student.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement, about.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each kind.")] = 3,
) -> None:
    """Images a second that a student is trained on, beside a bare loop of forward and backward passes."""
    with exit_on_error():
        from rich.table import Table
        from rich.text import Text

        from kdray.config.load import parse_section
        from kdray.runs.bench import parse_shape
        from kdray.runs.bench_training import measure_training, training_lines
        from kdray.training.recipe import StudentSection
        from kdray.utils.console import make_console

        given = {"model": model, "augment": augment, "device": device, "precision": precision, "compile": compile}
        given |= {} if batch_size is None else {"batch_size": batch_size}
        recipe, size = parse_section(StudentSection, given, origin="kdray bench train"), parse_shape(shape)
        speed = measure_training(
            recipe,
            size,
            seconds=seconds,
            repeats=repeats,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
        table = Table(show_header=False, box=None)
        for name, value in training_lines(recipe, size, speed):
            table.add_row(Text(name, "bold"), value)
        make_console(width=output_width()).print(table)
