"""Names of files and folders that say which part of a data set they hold, as Hugging Face's data sets have them."""

import re
from collections.abc import Iterable

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_PLAIN = {"set", "dataset", "data", "split", "folder", "image", "images", "img", "imgs"}
"""Words beside that of a split in the name of a folder, such as training_set, that say nothing of what it shows."""
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?$")


def split_of(name: str) -> str | None:
    """The part of a data set that a name (of a folder, or of a file without its suffix) stands for.

    Returns:
        train, test or validation where one of their words stands in the name; what stands before the number of a shard
        (`extra` of `extra-00000-of-00002`); None where the name says nothing.
    """
    shard = _SHARD.match(name)
    name = shard["split"] if shard else name
    found = [_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS]
    return found[0] if found else (name if shard else None)


def split_folders(names: Iterable[str]) -> list[str]:
    """Those of the folders in one folder that are parts of a data set, not classes.

    A folder is such a part if its name is the word of a split, numbers and words such as `set` aside: `test`,
    `val2017`, `training_set`, but not `test tube`. A further word that all folders share says nothing of a class
    either, as in `seg_train` and `seg_test`, if the folders are of several splits.

    Returns:
        names in the given order: of all folders, or of those that are parts of different splits; none where a single
        split is named beside other folders, as a class of trains is.
    """
    read = {name: _as_split(name) for name in names}
    plain = [name for name, (split, rest) in read.items() if split and not rest]
    several = len({split for split, _ in read.values()}) > 1
    if all(split for split, _ in read.values()) and len({rest for _, rest in read.values()}) == 1 and several:
        return list(read)
    return plain if len(plain) == len(read) or len({read[name][0] for name in plain}) > 1 else []


def _as_split(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that a word of a folder's name stands for, or None, and the words that could name a class."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word]
    splits = [_SPLITS[word] for word in words if word in _SPLITS]
    rest = tuple(word for word in words if word not in _SPLITS and word not in _PLAIN)
    return (splits[0] if splits else None), rest


def missing_shards(names: list[str]) -> list[str]:
    """For each set of numbered shards that is not whole, "3 of the 5 shards of train"."""
    counts: dict[tuple[str, int], int] = {}
    for name in names:
        if shard := _SHARD.match(name):
            key = shard["split"], int(shard["count"])
            counts[key] = counts.get(key, 0) + 1
    return [
        f"{found:,} of the {count:,} shards of {split}" for (split, count), found in counts.items() if found < count
    ]
