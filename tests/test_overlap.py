"""Test images that are among those to distil with are told before anything is paid."""

import pytest
import torch
from conftest import command

from kdray.images import ImageSet
from kdray.runs.overlap import overlap_note


def images(*values: int, shape: tuple[int, int, int] = (1, 2, 2)) -> ImageSet:
    """An image of each value."""
    return ImageSet(images=torch.stack([torch.full(shape, value, dtype=torch.uint8) for value in values]))


def test_each_set_is_told_with_how_many_it_shares():
    test = images(1, 2, 3)
    notes = overlap_note(test, {"images": images(7, 3, 3, 1), "labelled": images(2), "other": images(8), "none": None})
    assert [note.split(", so")[0] for note in notes] == [
        "test: 2 images of its 3 are also in images",
        "test: 1 image of its 3 is also in labelled",
    ]


def test_a_few_images_that_a_public_set_has_twice_are_not_worth_a_word():
    test = images(*range(200))
    assert overlap_note(test, {"images": images(0, 1)}) == []
    assert len(overlap_note(test, {"images": images(0, 1, 2)})) == 1


def test_without_test_images_or_of_another_shape_there_is_nothing_to_say():
    assert overlap_note(None, {"images": images(1)}) == []
    assert overlap_note(images(1), {"images": images(1, shape=(1, 4, 1))}) == []


@pytest.mark.parametrize("shuffle", [None, 4])
def test_a_plan_says_so_and_one_shuffle_with_rows_of_their_own_mends_it(config_file, shuffle):
    tested = {"test__rows": "0:500", "images__rows": "500:1797", "images__count": 100, "images__shuffle": shuffle}
    overlapping = command("plan", config_file(**tested, test__shuffle=9))
    assert overlapping.returncode == 0, overlapping.stderr
    assert " images of its 500 are also in images" in overlapping.stdout + overlapping.stderr
    split = command("plan", config_file(**tested, test__shuffle=shuffle))
    assert split.returncode == 0, split.stderr
    assert "also in images" not in split.stdout + split.stderr
