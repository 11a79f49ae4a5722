"""`kdray init`: a first config to fill in. Asks and spends nothing."""

from pathlib import Path
from typing import Annotated

import typer

from kdray.cli.common import exit_on_error


def init_command(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The YAML file to write.")] = Path("kdray.yaml"),
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Your images; some are set apart to measure the student.")
    ] = None,
    drawn: Annotated[
        int | None, typer.Option(metavar="SIZE", help="Without images: draw candidates of SIZE x SIZE pixels.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where the teacher is asked.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="The teacher's classes, or their number.")
    ] = None,
    queries: Annotated[int, typer.Option(metavar="N", help="The budget.")] = 500,
) -> None:
    """Write a config with comments, for images in a folder or none, and a teacher behind HTTP."""
    with exit_on_error():
        from kdray.config.starting import starting_config, write_start
        from kdray.utils.files import expand, shown

        path, folder = expand(file), None if images is None else str(expand(images))
        start = starting_config(shown(path), folder, url, classes, queries, drawn=drawn)
        write_start(path, start.text)
        if start.images is not None:
            size = "as they are" if start.size is None else f"resized to {start.size} x {start.size} pixels"
            print(f"{start.images:,} images, {size}; {start.tested} of them are for the test")
        elif drawn is not None:
            print(f"no images: candidates of {drawn} x {drawn} pixels are drawn")
        print(f"wrote {shown(path)}; complete `teacher`, then: kdray plan {shown(path)}")
