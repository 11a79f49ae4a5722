"""A whole saved program, TorchScript or torch.export, as a model of uint8 images."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdray.errors import TeacherError


class SavedProgram(nn.Module):
    """Gives a saved program the input it expects: uint8 images [B, C, H, W] in, the program's output out.

    Args:
        program: the loaded program.
        pixels: "uint8" where it takes the images as they are, "unit" where it takes (pixel / 255 - mean) / std.
        mean, std: of each channel, in units of pixel / 255; 0 and 1 where not given.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, program: Callable[[Tensor], Any], pixels: str, mean: list[float] | None, std: list[float] | None
    ) -> None:
        super().__init__()
        self._program = program
        self._pixels = pixels
        self.register_buffer("_mean", torch.tensor(mean or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("_std", torch.tensor(std or [1.0]).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        return self._program(images if self._pixels == "uint8" else (images.float() / 255.0 - self._mean) / self._std)


def load_program(path: Path, pixels: str, mean: list[float] | None, std: list[float] | None) -> SavedProgram:
    """The program in `path`: a torch.export file where it ends in .pt2, else a TorchScript file.

    Args:
        pixels, mean, std: see `SavedProgram`.

    Raises:
        TeacherError: it is neither.
    """
    try:
        if path.suffix == ".pt2":
            with open(path, "rb") as file:  # torch takes no name that is not UTF-8
                program = torch.export.load(file).module()
        else:
            with warnings.catch_warnings(), open(path, "rb") as file:
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, but its files are in use
                program = cast(Any, torch.jit).load(file, map_location="cpu").eval()
    except Exception as error:  # torch raises anything from RuntimeError to pickle errors for a file that is neither
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"teacher.weights: {path} is neither TorchScript nor a torch.export file (.pt2): {reason}; "
            "for plain safetensors set teacher.model"
        ) from None
    return SavedProgram(program, pixels, mean, std)
