"""Labels of image sets, in the teacher's numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kdray.errors import ImageSetError
from kdray.images.base import ImageSet
from kdray.sections.classes import ClassesDiffer, match_classes
from kdray.utils.lazy import torch


def with_teachers_labels(
    data: ImageSet,
    names: Sequence[str] | None,
    count: int | None,
    *,
    field: str,
    on_note: Callable[[str], None] | None = None,
) -> ImageSet:
    """The same images; a label is the position of its class at the teacher. See `match_classes` for the rules.

    Args:
        data: images with labels, numbered in the order of `data.classes` where that is known.
        names: class names of the teacher, or None.
        count: number of its classes; None where it is not known yet.
        field: the config field of the images, for messages.
        on_note: told how classes were matched, where that is an assumption.

    Raises:
        ImageSetError: a label is no class of the teacher, or could be two of them.
    """
    labels = data.true_labels
    used, where = labels.unique(return_inverse=True)
    try:
        own = None if data.classes is None else [str(name) for name in data.classes]  # a user's source may give numbers
        matching = match_classes(used.tolist(), own, names, count)
    except ClassesDiffer as error:
        whose = "the teacher's classes" if data.given else "teacher.classes"
        hint = f"; bring {field} and {whose} together: rename a class on one side"
        if not data.given:
            hint += f", or say in {field}.classes how the teacher calls its classes, in their order"
        raise ImageSetError(f"{field}: {error}{hint}") from None
    if matching.note and on_note:
        on_note(f"{field}: {matching.note}")
    positions = torch.tensor([matching.positions[label] for label in used.tolist()], dtype=torch.int64)
    return replace(data, labels=positions[where], classes=tuple(names) if names is not None else None)
