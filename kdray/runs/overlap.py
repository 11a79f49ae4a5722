"""Test images on which a student would be trained."""

from kdray.images import ImageSet
from kdray.ledger.records import hash_images
from kdray.utils.text import counted

_MOST = 1 << 28  # bytes of a set whose images are looked at: about half a second
_SOME = 0.01  # public sets have some images twice


def overlap_note(test: ImageSet | None, others: dict[str, ImageSet | None]) -> list[str]:
    """Which sets share more than one of a hundred test images, and what to do, for each.

    Args:
        others: sets by the field of the config that names them.
    """
    if test is None or test.images.nbytes > _MOST:
        return []
    tested, notes = set(hash_images(test.images)), []
    for field, data in others.items():
        if data is None or data.image_shape != test.image_shape or data.images.nbytes > _MOST:
            continue
        shared = len(tested.intersection(hash_images(data.images)))
        if shared > _SOME * len(tested):
            notes.append(
                f"test: {counted(shared, 'image')} of its {len(test):,} {'is' if shared == 1 else 'are'} also in "
                f"{field}, so figures of new images are usually lower; where both have one source, give both one "
                f"shuffle, and each its own rows"
            )
    return notes
