"""The random words of compiled drawing, in plain Python: the reference for `kdray.pools.procedural.words_numba`."""


def split_mix(start: int, number: int) -> int:
    mixed = (start + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


def cut(word: int, *bits: int) -> list[int]:
    """The numbers of so many bits each that follow one another in a word, from the lowest bit on."""
    numbers = []
    for count in bits:
        numbers.append(word % 2**count)
        word >>= count
    return numbers
