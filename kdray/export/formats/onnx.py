"""ONNX, for ONNX Runtime on servers, phones and in browsers."""

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Format, Runner, reason, register_format

INPUT, OUTPUT = "images", "probabilities"


@register_format
class Onnx(Format):
    """One file, with the names of the classes in its metadata."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "onnx"
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`."""
        batch = torch.export.Dim("batch")
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    graph.eval(),
                    (about.example(),),
                    dynamo=True,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_shapes={INPUT: {0: batch}},
                    verbose=False,
                )
        except Exception as error:  # torch raises many kinds
            raise ExportError(f"{about.card.model} cannot be exported to ONNX: {reason(error)}") from None
        import onnx

        assert program is not None  # only the exporter of before gives none
        model = program.model_proto
        for key, value in about.metadata().items():
            model.metadata_props.add(key=key, value=value)
        onnx.save_model(model, str(path))

    def load(self, path: Path) -> Runner:
        """See `Format`: in ONNX Runtime, on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

        return run
