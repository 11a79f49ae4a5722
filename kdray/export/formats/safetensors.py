"""kdray's own model file: weights, with the name of the network."""

from pathlib import Path
from typing import ClassVar

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Format, Runner, register_format
from kdray.models.checkpoint import load_student, save_model


@register_format
class Safetensors(Format):
    """`kdray.load_student` opens it; the network's code is kdray's, and a temperature has no place in it."""

    name: ClassVar[str] = "safetensors"
    suffix: ClassVar[str] = ".safetensors"

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`.

        Raises:
            ExportError: there is a temperature.
        """
        if graph.temperature != 1:
            raise ExportError("--temperature: a safetensors file gives logits and has no place for one; leave it out")
        save_model(path, graph.student, about.card)

    def load(self, path: Path) -> Runner:
        """See `Format`."""
        return Deployed(load_student(path)).eval()
