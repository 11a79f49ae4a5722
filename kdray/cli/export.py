"""`kdray export`: the student as a file of other software."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import exit_on_error

if TYPE_CHECKING:
    from kdray.export.int8 import Int8


def export_command(
    where: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A finished run, or a model file of kdray's.")],
    kind: Annotated[
        str, typer.Option("--format", metavar="F", help="See docs/exporting.md; an unknown one names all.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file, or the folder of hf; default: beside the student.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Divide the logits by it, see 'kdray evaluate'.")
    ] = 1.0,
    int8: Annotated[
        bool, typer.Option("--int8", help="Of a run, as ONNX: 8 bits, with accuracy and speed beside 32 bits.")
    ] = False,
) -> None:
    """Write the student in a format of other software: uint8 images in, probabilities out. What was written is run and
    compared with the student."""
    with exit_on_error():
        from kdray.runs.exporting import export
        from kdray.utils.files import expand, shown

        done = export(expand(where), kind, None if out is None else expand(out), temperature, int8=int8)
        which = "images that were bought" if done.real else "images of random pixels"
        print(
            f"{shown(done.path)}: {done.size / 1e6:.2f} MB; on {done.images} {which}, 1, 2 and 7 at a time, its "
            f"probabilities are the student's within {done.difference:.1e}"
            + (", before it was brought to 8 bits" if done.int8 else "")
        )
        if done.int8 is not None:
            print(_of_int8(done.int8))


def _of_int8(found: "Int8") -> str:
    """What 8 bits cost and bring."""
    right = f"; accuracy {found.accuracy:.2%}, {found.float_accuracy:.2%} before" if found.accuracy is not None else ""
    speeds = f"{found.faster:.2f} times as fast with one image, {found.faster_in_batches:.2f} times with 64"
    slow = "; on this processor 8 bits are slower: they save space alone" if found.faster_in_batches < 1 else ""
    return f"8 bits: same class on {found.agreement:.2%} of {found.images:,} images{right}; {speeds}{slow}"
