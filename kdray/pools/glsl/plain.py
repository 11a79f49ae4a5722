"""Which images show too little: those of one colour, of two, and with few coloured pixels, as in "What Makes a Good
Dataset for Knowledge Distillation?", section 3.2."""

import numpy as np

_FEWEST = 20  # one in so many pixels must differ from the commonest colour


def is_plain(images: np.ndarray) -> np.ndarray:
    """Whether each image has at most two colours, or one that covers more than 95% of it.

    Args:
        images: uint8 [B, H, W, C], C at most 3.

    Returns:
        bool [B].
    """
    count = images.shape[1] * images.shape[2]
    flat = images.reshape(len(images), count, images.shape[3])
    colours = np.zeros(flat.shape[:2], np.int32)
    for channel in range(images.shape[3]):
        colours = colours << 8 | flat[..., channel]
    least, most = colours.min(axis=1, keepdims=True), colours.max(axis=1, keepdims=True)
    two = ((colours == least) | (colours == most)).all(axis=1)
    # A colour of more than half of the pixels is their median.
    median = np.partition(colours, count // 2, axis=1)[:, count // 2 : count // 2 + 1]
    others = _FEWEST * (colours != median).sum(axis=1)
    plain: np.ndarray = two | (others < count)
    return plain
