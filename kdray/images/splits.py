"""Names of files and folders that say which part of a data set they hold, as Hugging Face's data sets have them."""

import re

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
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
