"""A stand-in for the script that Active Mixup's authors released: pairs of image files through a torch DataLoader.

Of theirs it keeps the shape: a dataset item is one pair, whose two files are opened and decoded with PIL in loader
processes; the main process mixes a batch of pairs at one λ after the other, as floats, and asks the student; a pair
keeps its lowest confidence; the k lowest are taken once all pairs are done. Files are decoded again for every pair.

Choices made to be fair:

- A pair is decoded once for all λ, as in theirs, and travels to the main process as bytes, not as floats.
- 256 pairs a batch, not theirs of 1,000: a forward pass that fits a CPU's caches. Nothing is shuffled, and mixed
  images are not kept.
- The student is in eval mode, without gradients, in channels-last layout, as kdray's is, on whatever device it came.
- Torch keeps the threads it has, by default one a core: although the loaders use the cores too, that is faster than
  leaving some to them. Where anything else runs it is many times slower: measure on a quiet machine, or on one thread.
- Mixed pixels stay floats: no rounding is paid for.

The clock runs from the making of the loader to the k lowest. How long the first batch took to come is given apart, as
that is mostly the start of the loader processes.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH = 256


class PairFiles(Dataset):
    """Item n is the two images of pair n, decoded from their files: uint8 [H, W] or [H, W, 3] each."""

    def __init__(self, folder: Path, count: int, pairs: np.ndarray) -> None:
        self._paths = [str(_path(folder, number)) for number in range(count)]
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        i, j = self._pairs[number]
        return _decode(self._paths[i]), _decode(self._paths[j])


def write_images(images: Tensor, folder: Path) -> None:
    """Write uint8 [N, 1, H, W] or [N, 3, H, W] as PNG files 000000.png, 000001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(_path(folder, number))


def score(
    folder: Path,
    count: int,
    lambdas: Sequence[float],
    model: nn.Module,
    pairs: np.ndarray,
    k: int,
    workers: int,
) -> tuple[np.ndarray, float, float]:
    """The k pairs with the lowest confidence over all λ.

    Args:
        folder: of `count` images, as `write_images` leaves it.
        lambdas: weights of a pair's first image.
        model: pixels [B, C, H, W] from 0 to 255 to logits [B, K]; left as it is.
        pairs: image numbers int64 [P, 2].
        workers: loader processes; with 0 the main process decodes too.

    Returns:
        Rows of `pairs`, lowest first; candidates a second over the whole call; seconds until the first batch came.
    """
    device = next(model.parameters()).device
    student = copy.deepcopy(model).to(memory_format=torch.channels_last).eval()
    begin, waited, parts = time.perf_counter(), 0.0, []
    loader = DataLoader(
        PairFiles(folder, count, pairs), batch_size=BATCH, num_workers=workers, pin_memory=device.type == "cuda"
    )
    with torch.no_grad():
        for one, other in loader:
            waited = waited or time.perf_counter() - begin
            first, second = _floats(one, device), _floats(other, device)
            lowest = torch.ones(len(first), device=device)
            for weight in lambdas:
                confidence = student(torch.lerp(second, first, weight)).softmax(dim=1).amax(dim=1)
                lowest = torch.minimum(lowest, confidence)
            parts.append(lowest)
        scores = torch.cat(parts)
        numbers = scores.topk(min(k, len(scores)), largest=False).indices.cpu().numpy()
    return numbers, len(pairs) * len(lambdas) / (time.perf_counter() - begin), waited


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"


def _decode(path: str) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def _floats(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, H, W] or [B, H, W, C] to float32 [B, C, H, W] in channels-last layout, which is how they lie."""
    images = images.to(device, non_blocking=True)
    return (images.unsqueeze(-1) if images.ndim == 3 else images).permute(0, 3, 1, 2).float()
