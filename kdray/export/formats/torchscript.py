"""TorchScript, for libtorch and older torch."""

import warnings
from pathlib import Path
from typing import ClassVar

import torch

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Format, Runner, reason, register_format


@register_format
class TorchScript(Format):
    """`torch.jit.load(path)` opens it, in Python and in C++. torch no longer develops TorchScript; prefer `pt2`."""

    name: ClassVar[str] = "torchscript"
    suffix: ClassVar[str] = ".pt"

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`: what the student does with two images is recorded."""
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                # The batches of `largest_difference` check more than torch's own comparison of two recordings.
                recorded = torch.jit.trace(graph.eval(), (about.example(),), check_trace=False)
                with open(path, "wb") as file:  # a path may be none that is UTF-8
                    torch.jit.save(recorded, file, _extra_files=about.metadata())
        except Exception as error:  # torch raises many kinds
            raise ExportError(f"{about.card.model} cannot be recorded as TorchScript: {reason(error)}") from None

    def load(self, path: Path) -> Runner:
        """See `Format`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(path, "rb") as file:
                run: Runner = torch.jit.load(file)
        return run
