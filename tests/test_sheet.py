"""Contact sheets: where images and text stand, and what is said below an image."""

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdray.report.captions import likeliest, made_of
from kdray.report.preview import answer_lines
from kdray.report.sheet import SIDE, Caption, Part, cell_size, contact_sheet, fitted, to_cell
from kdray.teachers.answers import Answers

LEFT, TOP, PITCH = 20, 50, SIDE + 12  # of the first image, and from one to the next


def pictures(n: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def part(n: int = 3, caption: Caption | None = None, shape: tuple[int, ...] = (1, 28, 28)) -> Part:
    return Part(title="a title", images=pictures(n, *shape), captions=[caption or Caption()] * n)


def pixels(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)  # [H, W, 3]


# The sheet


@pytest.mark.parametrize(
    ("size", "want"),
    [
        *(((28, 28), (140, 140)), ((32, 32), (128, 128)), ((16, 8), (144, 72)), ((1, 1), (144, 144))),
        *(((100, 30), (100, 30)), ((144, 144), (144, 144)), ((288, 144), (144, 72)), ((1, 1000), (1, 144))),
    ],
)
def test_small_images_are_enlarged_by_a_whole_number_and_large_ones_reduced(size, want):
    assert cell_size(*size) == want


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 16)])
def test_an_enlarged_pixel_is_a_square_of_its_colour(shape):
    image = pictures(1, *shape)[0].numpy()
    factor = SIDE // max(shape[1:])
    shown = np.asarray(to_cell(image)).reshape(shape[1] * factor, shape[2] * factor, shape[0])
    want = image.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(shown, want)


def test_a_large_image_keeps_its_colours():
    image = np.zeros((3, 600, 300), np.uint8)
    image[0, :300], image[2, 300:] = 200, 90
    shown = np.asarray(to_cell(image))
    assert shown.shape == (144, 72, 3)
    assert shown[10, 10].tolist() == [200, 0, 0] and shown[130, 60].tolist() == [0, 0, 90]


def test_channels_that_are_no_colours_are_shown_side_by_side():
    two, four = pictures(1, 2, 8, 8)[0].numpy(), pictures(1, 4, 8, 8)[0].numpy()
    assert np.array_equal(np.asarray(to_cell(two))[::9, ::9], np.concatenate(two, axis=1))
    want = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
    assert np.array_equal(np.asarray(to_cell(four))[::9, ::9], want)


def test_images_stand_in_rows_below_the_title_of_their_part():
    first, second = part(3), part(1, shape=(3, 28, 28))
    sheet = pixels(contact_sheet([first, second], columns=2))
    row = 140 + 4 + 12  # an image, and what is below
    assert sheet.shape == (20 + 30 + 2 * row + 10 + 30 + row - 12 + 20, 2 * PITCH - 12 + 40, 3)
    places = [(TOP, LEFT), (TOP, LEFT + PITCH), (TOP + row, LEFT), (TOP + 2 * row + 40, LEFT)]
    for image, (y, x) in zip([*first.images, *second.images], places, strict=True):
        shown = sheet[y : y + 140, x : x + 140]
        assert np.array_equal(
            shown, np.broadcast_to(np.asarray(to_cell(image.numpy())).reshape(140, 140, -1), shown.shape)
        )
    for y in (20, TOP + 2 * row + 10):
        assert (sheet[y : y + 20, LEFT:] < 128).any()
    assert (sheet[TOP + row - 1 :][:140, LEFT + PITCH - 2 :] == 255).all(), "no fourth image"


@pytest.mark.parametrize("caption", [Caption(said=[("W" * 90, "0.54")]), Caption(about=[("", "id " + "9" * 90)])])
def test_no_text_reaches_into_the_next_cell(caption):
    sheet = pixels(contact_sheet([part(2, caption)], columns=2))
    below = sheet[TOP + 140 + 2 : -20]
    for column in range(2):
        cell = below[:, LEFT + column * PITCH :][:, :SIDE]
        assert (cell < 200).any()
    assert (below[:, LEFT + SIDE : LEFT + PITCH] == 255).all() and (below[:, LEFT + PITCH + SIDE :] == 255).all()


def test_what_the_teacher_said_is_above_what_the_image_is():
    captions = [
        Caption(said=[("7", "1.00")] * 3, about=[("id 5", "")]),
        Caption(said=[("7", "")], about=[("id 5", "")]),
    ]
    sheet = pixels(contact_sheet([Part(title="", images=pictures(2, 1, 28, 28), captions=captions)]))
    lines = sheet[TOP + 140 + 4 :]
    dark = [
        [bool((lines[15 * k : 15 * k + 14, x : x + SIDE] < 255).any()) for k in range(4)] for x in (LEFT, LEFT + PITCH)
    ]
    assert dark == [[True] * 4, [True, False, False, True]]
    id_lines = [lines[45:59, x : x + SIDE] for x in (LEFT, LEFT + PITCH)]
    assert np.array_equal(*id_lines)


def test_every_image_needs_a_caption():
    with pytest.raises(ValueError, match="3 images but 1 captions"):
        Part(title="", images=pictures(3, 1, 8, 8), captions=[Caption()])


@examples(50)
@given(st.text(max_size=80), st.integers(0, 200))
def test_a_text_is_as_wide_as_there_is_room(text, width):
    line, whole = fitted(text, 11, width), fitted(text, 11, 1e6)
    assert fitted(line, 11, width) == line, "it fits"
    assert line == whole or line == "" or (line.endswith("…") and whole.startswith(line[:-1]))


def test_a_text_is_cut_only_where_it_is_too_long():
    assert fitted("hockey arena", 11, SIDE) == "hockey arena"
    assert fitted("two\n lines\x07", 11, SIDE) == "two lines\\x07"
    assert fitted("a stadium for the game of baseball", 11, SIDE).startswith("a stadium for ")
    assert fitted("W", 11, 0) == ""


# What is said


def answers(*rows: list[float], label: int = 0) -> Answers:
    probs = torch.tensor(rows)
    return Answers(probs=probs, labels=torch.full((len(rows),), label), num_classes=probs.shape[1])


NAMES = ("cat", "dog", "emu", "fox")


def test_the_likeliest_classes_by_hand():
    soft = answers([0.1, 0.254, 0.6, 0.046], label=2)
    assert answer_lines(soft, 0, NAMES) == [("emu", "0.60"), ("dog", "0.25"), ("cat", "0.10")]
    sure = answers([0.999, 0.001, 0.0, 0.0])
    assert answer_lines(sure, 0, NAMES) == [("cat", "1.00"), ("dog", "<0.01")], "a 0 was not shown, or rounded away"
    hard = Answers(probs=None, labels=torch.tensor([3]), num_classes=4)
    assert answer_lines(hard, 0, NAMES) == [("fox", "")]


def test_of_equal_classes_the_label_comes_first():
    assert likeliest(answers([0.25, 0.25, 0.25, 0.25], label=2), 0, 3) == [(2, 0.25), (0, 0.25), (1, 0.25)]
    assert likeliest(answers([0.0, 0.0, 0.0], label=1), 0, 3) == [(1, None)], "all were rounded to 0"
    assert likeliest(answers([0.3, 0.7], label=1), 0, 3) == [(1, pytest.approx(0.7)), (0, pytest.approx(0.3))]


def test_what_candidates_are_made_of():
    assert made_of({"i": 12, "j": 40, "lambda": 0.54}) == ("#12 + #40", "λ 0.54")
    assert made_of({"i": 1, "j": 2, "draw": 0, "share": 0.3333}) == ("#1 + #2", "share 0.33")
    assert made_of({"i": 1, "j": 2}) == ("#1 + #2", "")
    assert made_of({"image": 7}) == ("#7", "") and made_of({"kind": "mixup"}) == ("mixup", "")
    assert made_of({"copy_of": 3, "copy": 0}) == ("copy of row 3 of labelled", "") and made_of({}) == ("", "")
