"""ONNX with whole numbers of 8 bits, and what that costs and brings here. Needs `kdray[onnx]`."""

import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdray.errors import ExportError
from kdray.export.base import BATCHES, reason
from kdray.export.formats.onnx import INPUT, OUTPUT

_BATCH = 64  # images of a pass, in calibration and where throughput is compared
_PASSES = 30  # timed passes of each of the two


@dataclass(frozen=True, kw_only=True)
class Int8:
    """A network of 8 bits beside that of 32 bits, in ONNX Runtime on one core.

    Attributes:
        images: number of images that both were asked about, none of them seen in calibration.
        agreement: share of these for which both name the same class.
        accuracy, float_accuracy: share that each gets right; None without true labels.
        faster: time of 32 bits / time of 8 bits for one image; below 1 it is slower.
        faster_in_batches: the same for 64 images at a time.
    """

    images: int
    agreement: float
    accuracy: float | None
    float_accuracy: float | None
    faster: float
    faster_in_batches: float


def quantise(network: Path, out: Path, images: Tensor) -> None:
    """Write the network with weights and activations of 8 bits (static quantisation).

    Convolutions and linear layers are quantised, each channel of the weights with a scale of its own. Weights use 7 of
    the 8 bits: processors without VNNI add up two products in 16 bits, which would overflow.

    Args:
        network: an ONNX file of kdray's.
        out: is written.
        images: uint8 [N, C, H, W] that set the range of the activations, such as those that were bought.

    Raises:
        ExportError: it cannot be done.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._parts = iter(images.split(_BATCH))

        def get_next(self) -> object:
            part = next(self._parts, None)
            return None if part is None else {INPUT: part.numpy()}

    prepared = out.with_name(f".{out.stem}.prepared.onnx")
    quiet, before = logging.getLogger(), logging.getLogger().level
    quiet.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(network), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:  # the package raises many kinds
        raise ExportError(f"--int8: the network cannot be quantised: {reason(error)}") from None
    finally:
        quiet.setLevel(before)
        prepared.unlink(missing_ok=True)


def compare(network: Path, quantised: Path, images: Tensor, labels: Tensor | None) -> Int8:
    """What the 8 bits cost and bring: measured in turn, on one thread.

    Args:
        network: the ONNX file of 32 bits.
        quantised: that of 8 bits.
        images: uint8 [N, C, H, W], N at least 1, none of them used for calibration.
        labels: true classes, int64 [N]; None: not known.

    Raises:
        ExportError: the quantised one does not take a batch of 1, 2 or 7 images.
    """
    runs = [_session(path) for path in (network, quantised)]
    for size in BATCHES:
        batch = images[torch.arange(size) % len(images)]
        if (shape := tuple(_answers(runs[1], batch).shape[:1])) != (size,):
            raise ExportError(f"--int8: the quantised network answers {size} images with {shape[0]} rows")
    called = [torch.cat([_answers(run, part) for part in images.split(_BATCH)]).argmax(dim=1) for run in runs]
    right = [None if labels is None else float((one == labels).double().mean()) for one in called]
    return Int8(
        images=len(images),
        agreement=float((called[0] == called[1]).double().mean()),
        float_accuracy=right[0],
        accuracy=right[1],
        faster=_ratio(runs, images[:1]),
        faster_in_batches=_ratio(runs, images[torch.arange(_BATCH) % len(images)]),
    )


def _ratio(runs: list[object], batch: Tensor) -> float:
    """Median time of the first / that of the second, in turn."""
    taken: list[list[float]] = [[], []]
    for _ in range(_PASSES):
        for times, run in zip(taken, runs, strict=True):
            begin = time.perf_counter()
            _answers(run, batch)
            times.append(time.perf_counter() - begin)
    first, second = (statistics.median(times) for times in taken)
    return first / second


def _session(path: Path) -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _answers(session: object, images: Tensor) -> Tensor:
    run = session.run  # type: ignore[attr-defined]
    return torch.from_numpy(run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])
