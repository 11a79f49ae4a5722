"""torch.export's program, for torch without kdray."""

from pathlib import Path
from typing import ClassVar

import torch

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Format, Runner, reason, register_format


@register_format
class Pt2(Format):
    """`torch.export.load(path).module()` opens it."""

    name: ClassVar[str] = "pt2"
    suffix: ClassVar[str] = ".pt2"

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`; the names of the classes are in the file `metadata.json` within."""
        try:
            program = torch.export.export(
                graph.eval(), (about.example(),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
            )
        except Exception as error:  # torch raises many kinds
            raise ExportError(f"{about.card.model} cannot be exported by torch.export: {reason(error)}") from None
        with open(path, "wb") as file:  # a path that is not UTF-8 would end the process
            torch.export.save(program, file, extra_files=about.metadata())

    def load(self, path: Path) -> Runner:
        """See `Format`."""
        with open(path, "rb") as file:
            return torch.export.load(file).module()
