"""Shaders: the programs that come with kdray, those of a user's folder in each form, and those that cannot be used."""

import contextlib
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import Notes, examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.config.load import load_config
from kdray.errors import ConfigError, RunDirectoryError
from kdray.pools.base import Pool, pools
from kdray.pools.glsl import check
from kdray.pools.glsl.canvas import PARAMETERS, images_at_once
from kdray.pools.glsl.check import try_programs
from kdray.pools.glsl.forms import Program, builtin_programs, digest, parse
from kdray.pools.glsl.plain import is_plain
from kdray.pools.glsl.process import CanvasProcess
from kdray.pools.procedural.shaders import ShaderPainter, notes_of
from kdray.report.preview import preview_pool
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import resolve
from kdray.runs.pool_schedule import read_pool
from kdray.runs.run import resume, run

BUILTIN = builtin_programs()
TIME = (0.0, 60.0)
LIMIT_S = 100

# A program shows its coordinates, time and mouse as colours; those with `main` begin in the middle of the first pixel.
IMAGE = "void mainImage(out vec4 c, in vec2 p) { c = vec4(p / iResolution.xy, fract(iTime), 1.0); }"
CLASSIC = """#ifdef GL_ES
precision mediump float; // a comment that says uniform
#endif
uniform vec2 resolution; uniform float time;
void main() { gl_FragColor = vec4(gl_FragCoord.xy / resolution, fract(time), 1.0); }"""
GEEK = (
    "precision highp float;uniform vec2 r;uniform float t;void main(){gl_FragColor=vec4(gl_FragCoord.xy/r,fract(t),1);}"
)
GEEKER = "void main(){gl_FragColor=vec4(gl_FragCoord.xy/r,fract(t),1);}"
CLASSIC_3 = """#version 300 es
precision highp float; uniform highp vec2 resolution; uniform float time; out vec4 outColor;
void main() { outColor = vec4(gl_FragCoord.xy / resolution, fract(time), 1.0); }"""
GEEK_3 = (
    "precision highp float;uniform vec2 r;uniform float t;out vec4 o;void main(){o=vec4(gl_FragCoord.xy/r,fract(t),1);}"
)
GEEKER_3 = "void main(){o=vec4(gl_FragCoord.xy/r,fract(t),1);}"
FORMS = {
    "mainImage": IMAGE, "classic": CLASSIC, "geek": GEEK, "geeker": GEEKER,
    "classic 300": CLASSIC_3, "geek 300": GEEK_3, "geeker 300": GEEKER_3,
}  # fmt: skip
SEEDED = "void mainImage(out vec4 c, in vec2 p) { c = vec4(fract(p.xyy * iSeed.xyz + iSeed.w), 1); }"
# A driver may end a loop after some ten thousand rounds, so each one has much to do.
HANGS = """void mainImage(out vec4 c, in vec2 p) {
    float x = p.x;
    for (int i = 0; i < 60000; i++) { MUCH }
    c = vec4(x, fract(p.yy), 1);
}""".replace("MUCH", "x = sin(x) + cos(3.0 * x) + float(i);" * 60)


def images(shape: tuple[int, int, int] = (3, 16, 16)) -> torch.Tensor:
    return torch.zeros((4, *shape), dtype=torch.uint8)


def pool_of(shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0, **fields) -> Pool:
    return pools.parse({"kind": "shaders", **fields}).build(images(shape), seed)


def folder(path: Path, **programs: str) -> str:
    for name, text in programs.items():
        (path / f"{name}.glsl").write_text(text)
    return str(path)


def parameters(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).random((count, PARAMETERS)).astype(np.float32)
    drawn[:, 0] *= TIME[1]
    return drawn


def draw(programs: list[Program], size: tuple[int, int], numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    return CanvasProcess(programs, size).draw(numbers, values, LIMIT_S)


# The programs that come with kdray


@pytest.fixture(scope="module")
def builtin() -> CanvasProcess:
    return CanvasProcess(BUILTIN, (28, 28))


def test_there_are_many_programs_and_each_says_what_it_shows():
    assert len(BUILTIN) >= 40
    files = Path(sys.modules["kdray.pools.glsl.forms"].__file__).parent.joinpath("programs").iterdir()
    assert all(file.read_text().startswith("// ") for file in files)


@pytest.mark.parametrize("number", range(len(BUILTIN)), ids=[one.name for one in BUILTIN])
def test_a_program_shows_much_and_varies_with_time_and_with_seeds(number, builtin):
    fixed = np.repeat(parameters(1), 12, axis=0)
    timed, seeded = fixed.copy(), fixed.copy()
    timed[:, 0] = parameters(12, 1)[:, 0]
    seeded[:, 1:5] = parameters(12, 1)[:, 1:5]
    numbers = np.full(12, number)
    for varied in (timed, seeded):
        drawn = builtin.draw(numbers, varied, LIMIT_S)
        assert len(np.unique(drawn.reshape(12, -1), axis=0)) == 12
        assert np.abs(np.diff(drawn.astype(int), axis=0)).mean() > (2 if varied is timed else 20), "in pixel values"
    drawn = builtin.draw(numbers, parameters(12, 2), LIMIT_S)
    assert is_plain(drawn).sum() <= 1
    assert drawn.reshape(12, -1).std(axis=1).mean() > 20
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 200


def test_all_programs_are_drawn_about_equally_often_at_all_times_and_seeds(monkeypatch):
    class Notebook:
        """A canvas that keeps what it is asked for, and draws noise."""

        compiled: frozenset[int] = frozenset()

        def draw(self, numbers, values, limit_s):
            asked.append((numbers, values))
            return np.random.default_rng(0).integers(0, 256, (len(numbers), 8, 8, 3), dtype=np.uint8)

    asked: list[tuple[np.ndarray, np.ndarray]] = []
    painter = ShaderPainter(BUILTIN, (3, 8, 8), (10.0, 30.0), 0)
    monkeypatch.setattr(painter, "open", Notebook)
    painter(torch.arange(30_000))
    ((numbers, values),) = asked
    counts = np.bincount(numbers, minlength=len(BUILTIN))
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()
    assert np.abs(np.corrcoef(np.column_stack([numbers, values]).T) - np.eye(1 + PARAMETERS)).max() < 0.03
    for number in range(len(BUILTIN)):
        mine = values[numbers == number]
        assert 10 <= mine[:, 0].min() < 11 and 29 < mine[:, 0].max() <= 30
        assert mine[:, 1:].min(axis=0).max() < 0.1 and mine[:, 1:].max(axis=0).min() > 0.9


# Bits


@pytest.fixture(scope="module")
def odd_sized() -> tuple[ShaderPainter, torch.Tensor]:
    painter = ShaderPainter(BUILTIN, (3, 9, 13), TIME, 0)
    return painter, painter(torch.arange(300))


@examples(10)
@given(ids=st.lists(st.integers(0, 299), max_size=300))
def test_a_candidate_is_the_same_in_any_company(odd_sized, ids):
    painter, drawn = odd_sized
    assert torch.equal(painter(torch.tensor(ids, dtype=torch.int64)), drawn[ids])


def test_grey_is_the_grey_of_the_colours():
    grey, colour = (
        ShaderPainter(BUILTIN, (channels, 12, 12), TIME, 7)(torch.arange(100)).long() for channels in (1, 3)
    )
    wanted = (77 * colour[:, 0] + 150 * colour[:, 1] + 29 * colour[:, 2] + 128) // 256
    same = (wanted == grey[:, 0]).flatten(1).all(dim=1)
    assert same.double().mean() > 0.9, "all but those that are plain in grey alone"


def test_a_size_that_holds_one_image_at_a_time_is_drawn():
    assert images_at_once((600, 700)) == 1 and images_at_once((32, 32)) == 256
    drawn = draw([parse("a", IMAGE)], (600, 700), np.zeros(1, int), parameters(1))
    assert drawn.shape == (1, 600, 700, 3)
    assert drawn[0, :, 0, 1].tolist() == [round(255 * (600 - row - 0.5) / 600) for row in range(600)]


def test_other_processes_and_threads_draw_the_same_bits(monkeypatch):
    programs, numbers, values = BUILTIN[::5], np.arange(200) % len(BUILTIN[::5]), parameters(200)
    drawn = draw(programs, (16, 16), numbers, values)
    monkeypatch.setenv("LP_NUM_THREADS", "2")
    assert np.array_equal(draw(programs, (16, 16), numbers, values), drawn)
    painter = ShaderPainter(programs, (3, 16, 16), TIME, 3)
    ids, barrier = torch.arange(200), threading.Barrier(3)
    wanted = pickle.loads(pickle.dumps(painter))(ids)
    with ThreadPoolExecutor(3) as threads:
        for other in threads.map(lambda _: (barrier.wait(), painter(ids))[1], range(3)):
            assert torch.equal(other, wanted)


def test_a_forked_process_draws_and_leaves_its_parents_canvas_alone():
    painter = ShaderPainter([parse("a", SEEDED)], (3, 8, 8), TIME, 3)
    drawn = painter(torch.arange(5))
    queue = multiprocessing.get_context("fork").SimpleQueue()
    if (child := os.fork()) == 0:
        queue.put(painter(torch.arange(5)).numpy().tobytes())
        os._exit(0)
    assert queue.get() == drawn.numpy().tobytes()
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(painter(torch.arange(5)), drawn)


def test_opengl_stays_out_of_the_process_that_draws():
    """Its LLVM and that of Triton do not bear each other."""
    draw([parse("a", SEEDED)], (8, 8), np.zeros(1, int), parameters(1))
    assert "libEGL" not in Path("/proc/self/maps").read_text() and "moderngl" not in sys.modules


def test_the_process_of_a_canvas_ends_with_the_canvas_and_with_who_started_it():
    canvas = CanvasProcess((), (8, 8))
    helper = canvas._process
    del canvas
    assert helper.returncode is not None
    script = (
        "import os; from kdray.pools.glsl.process import CanvasProcess; print(CanvasProcess((), (8, 8))._process.pid"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{script}, flush=True); os.kill(os.getpid(), 9)"], stdout=subprocess.PIPE
    )
    assert done.returncode == -9
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=60)


def test_a_program_that_hangs_in_a_run_is_named():
    late = HANGS.replace("float x = p.x;", "if (iTime < 30.0) { c = vec4(p / 16.0, 1, 1); return; } float x = p.x;")
    painter = ShaderPainter([parse("late", late)], (3, 8, 8), (0, 29), 0, limit_s=60)
    assert painter(torch.arange(16)).shape == (16, 3, 8, 8)
    others = [parse("early", IMAGE), parse("late", late), parse("other", IMAGE.replace("iTime", "2.0 * iTime"))]
    painter = ShaderPainter(others, (3, 8, 8), (29, 60), 0, limit_s=1.0)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"pool\.programs: late: it takes more than 1 s, in drawing \d images; it does so at some"
        ) as error:
            painter(torch.arange(16))
        assert "early" not in str(error.value) and "other" not in str(error.value)
        assert error.value.repeats, "the same candidates are drawn when the run goes on"
    kept = ShaderPainter(others, (3, 8, 8), (0, 29), 0, limit_s=60)
    assert kept(torch.arange(16)).shape == (16, 3, 8, 8) and kept.open().compiled == {0, 1, 2}


# Plain images


def plain(*colours: int) -> bool:
    """Of a grey image of 5 x 20 pixels, black but for these."""
    image = np.zeros(100, np.uint8)
    image[: len(colours)] = colours
    return bool(is_plain(image.reshape(1, 5, 20, 1))[0])


def test_images_of_two_colours_or_of_few_coloured_pixels_are_plain():
    assert plain() and plain(*[9] * 50) and plain(*range(1, 5)) and plain(8, 9, *[8] * 98)
    assert not plain(*range(1, 6)) and not plain(*[9] * 4, 8)
    assert plain(*[9] * 97, 1), "few others, whichever colour is common"
    coloured = np.zeros((1, 10, 10, 3), np.uint8)
    coloured[0, :5, :, 0], coloured[0, 5:, :, 2] = 1, 1
    assert is_plain(coloured)[0]
    coloured[0, 0, 0] = 1
    assert not is_plain(coloured)[0]
    assert is_plain(coloured[:0]).shape == (0,)


def test_an_image_that_is_plain_gives_way_to_another_of_the_same_id():
    half = "void mainImage(out vec4 c, in vec2 p) { c = iSeed.x < 0.5 ? vec4(0) : vec4(p / 16.0, iSeed.y, 1); }"
    painter = ShaderPainter([parse("a", half)], (3, 16, 16), TIME, 0)
    ids = torch.arange(500)
    drawn = painter(ids)
    dull = is_plain(drawn.permute(0, 2, 3, 1).numpy())
    assert dull.mean() < 0.02, "after 8 attempts one in 256"
    seeds = painter._random(ids).view(8, 1 + PARAMETERS, -1)[:, 2] / 2**31
    assert dull.tolist() == (seeds < 0.5).all(dim=0).tolist()
    assert torch.equal(painter(ids.flip(0)).flip(0), drawn)


# Programs of the user's own


@pytest.fixture(scope="module")
def in_each_form() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Thirty images of a program in each form, drawn by one process, and their parameters."""
    which, values = np.arange(len(FORMS)).repeat(30), parameters(30 * len(FORMS))
    drawn = draw([parse(form, text) for form, text in FORMS.items()], (8, 12), which, values).astype(int)
    return {form: (drawn[which == number], values[which == number]) for number, form in enumerate(FORMS)}


@pytest.mark.parametrize("form", FORMS)
def test_a_program_is_drawn_in_each_form(form, in_each_form):
    drawn, values = in_each_form[form]
    assert len(drawn) == len(values) == 30
    across, up = np.arange(12) + 0.5, np.arange(8)[::-1] + 0.5
    assert np.abs(drawn[..., 0] - 255 * across / 12).max() <= 1, "x grows to the right"
    assert np.abs(drawn[..., 1] - (255 * up / 8)[:, None]).max() <= 1, "y grows upwards"
    assert np.abs(drawn[..., 2] - 255 * (values[:, 0] % 1)[:, None, None]).max() <= 1


def test_the_mouse_and_the_seeds_vary_and_derivatives_do_not_depend_on_the_place():
    toy = "void mainImage(out vec4 c, in vec2 p) { c = vec4(iMouse.xy / iResolution.xy, iSeed.x, 1); }"
    classic = "uniform vec2 mouse;uniform vec4 iSeed;void main(){gl_FragColor=vec4(mouse,iSeed.x,1);}"
    slope = "void mainImage(out vec4 c, in vec2 p) { c = vec4(fwidth(sin(p * p)), iSeed.x, 1); }"
    canvas = CanvasProcess([parse("a", toy), parse("b", classic), parse("c", slope)], (9, 11))
    values = parameters(20)
    for number in (0, 1):
        drawn = canvas.draw(np.full(20, number), values, LIMIT_S)
        assert np.abs(drawn[:, 4, 4] - 255 * values[:, [5, 6, 1]]).max() <= 1
    same = canvas.draw(np.full(20, 2), np.repeat(values[:1], 20, axis=0), LIMIT_S)
    assert (same == same[0]).all() and len(np.unique(same[0])) > 5


def test_what_a_program_leaves_out_or_adds_to_is_black_in_any_company():
    colour, image = "vec4(gl_FragCoord.xy/r,fract(t),1)", "vec4(p / iResolution.xy, fract(iTime), 1.0)"
    texts = {
        "o": f"void main(){{o+={colour};}}",
        "own": f"precision highp float;uniform vec2 r;uniform float t;out vec4 n;void main( void )\n{{n+={colour};}}",
        "gl_FragColor": f"void main(){{gl_FragColor+={colour};}}",
        "mainImage": f"void mainImage( out vec4 c, in vec2 p) {{ c += {image}; }}",
        "discard": f"void main(){{if(gl_FragCoord.x<4.)discard;gl_FragColor={colour};}}",
        "none": "void mainImage(out vec4 c, in vec2 p) { if (p.x >= 4.0) c = IMAGE; }".replace("IMAGE", image),
    }
    canvas = CanvasProcess([parse("seeded", SEEDED), *(parse(*one) for one in texts.items())], (8, 12))
    numbers, values = np.random.default_rng(1).integers(0, 7, 60), parameters(60)
    drawn = canvas.draw(numbers, values, LIMIT_S)
    alone = [canvas.draw(numbers[[one]], values[[one]], LIMIT_S)[0] for one in reversed(range(60))]
    assert (drawn == np.stack(alone[::-1])).all()
    expected = draw([parse("a", IMAGE)], (8, 12), np.zeros(60, int), values).astype(int)
    expected[numbers >= 5, :, :4] = 0
    assert np.abs(drawn - expected)[numbers > 0].max() <= 1


def test_an_extension_may_stand_behind_a_comment():
    text = "// slope\n#extension GL_OES_standard_derivatives : enable\nvoid main(){gl_FragColor=vec4(fwidth(t*FC));}"
    with pytest.raises(ConfigError, match=r"a: it does not compile: 0:3\(\d+\): error: `FC' undeclared"):
        draw([parse("a", text)], (8, 8), np.zeros(1, int), parameters(1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("float f;", r"neither main\(\) nor mainImage\(\)"),
        ("#version 330 core\nvoid main(){}", "its #version is 330 core, and 100 and 300 es are accepted"),
        ("// void main() {}", "neither"),
    ],
)
def test_a_form_that_is_not_known_is_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        parse("a", text)


def test_programs_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    crash = "void mainImage(out vec4 c, in vec2 p) {\n    c = vec4(wrong, 1);\n}"
    texts = {
        "a": SEEDED, "b": crash, "c": HANGS, "d": "void mainImage(out vec4 c, in vec2 p) { c = vec4(iSeed.x); }",
        "e": "uniform sampler2D backbuffer;void main(){gl_FragColor=texture2D(backbuffer,gl_FragCoord.xy);}",
        "f": "uniform vec3 resolution;void main(){gl_FragColor=vec4(gl_FragCoord.xyz/resolution,1);}", "g": IMAGE,
        "h": "#version 300 es\nlayout(std140) uniform B{vec4 more;};out vec4 o;void main(){o=vec4(gl_FragCoord)+more;}",
    }  # fmt: skip
    found = try_programs([parse(name, text) for name, text in texts.items()], (16, 16), TIME, 4).unusable
    assert list(found) == ["b", "c", "d", "e", "f", "h"]
    assert found["h"] == "it reads the block B, for which a candidate has no values"
    assert found["b"].startswith("it does not compile: 0:2(") and "`wrong' undeclared" in found["b"]
    assert found["c"] == "it takes more than 4 s, in drawing 16 images of this size (pool.limit_s is 4)"
    assert found["d"] == "all of 16 images have one or two colours, or few pixels of another colour"
    assert found["e"] == "it reads the uniform backbuffer, for which a candidate has no value"
    assert found["f"] == "its uniform resolution must be a vec2"


def test_a_folder_is_drawn_alone_or_beside_the_programs_of_kdray(tmp_path):
    own = folder(tmp_path, red="void mainImage(out vec4 c, in vec2 p) { c = vec4(1.0, p / 32.0, 1); }", odd="nothing")
    (tmp_path / "notes.txt").write_text("no program")
    alone = pool_of(programs=own, builtin=False)
    drawn = alone.render(torch.arange(50))
    assert (drawn[:, 0] == 255).all() and drawn.double().std() > 10
    section = pools.parse({"kind": "shaders", "programs": own, "builtin": False})
    resolved, notes = section.resolved((3, 16, 16))
    assert notes == ["pool.programs: odd.glsl is left out: it has neither main() nor mainImage()"]
    assert resolved.left_out == ["odd.glsl"] and torch.equal(
        resolved.build(images(), 0).render(torch.arange(50)), drawn
    )
    beside = pool_of(programs=own, candidates=5000).render(torch.arange(5000))
    share = (beside[:, 0] == 255).flatten(1).all(dim=1).double().mean().item()
    assert share == pytest.approx(1 / (1 + len(BUILTIN)), abs=0.01)


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path):
    own = folder(tmp_path, **{os.fsdecode(b"caf\xe9"): SEEDED, "odd": IMAGE})
    resolved, notes = pools.parse({"kind": "shaders", "programs": own, "builtin": False}).resolved((3, 16, 16))
    assert resolved.digest is not None and not notes and resolved.left_out == []


def test_a_program_that_the_user_leaves_out_is_not_tried_and_the_others_are(tmp_path):
    own = folder(tmp_path, a=HANGS, b="nothing", c="void main() { wrong; }", d=SEEDED)
    fields = {"kind": "shaders", "programs": own, "builtin": False}
    section, notes = pools.parse(fields | {"left_out": ["a.glsl"]}).resolved((3, 16, 16))
    assert section.left_out == ["a.glsl", "b.glsl", "c.glsl"] and len(notes) == 2
    assert section.resolved((3, 16, 16)) == (section, [])
    for left_out in ([], ["b.glsl"]):
        assert pools.parse(fields | {"left_out": left_out}).recorded(section) == section
    other = pools.parse(fields | {"left_out": ["d.glsl"]})
    assert other.recorded(section) == other, "it is another experiment"


def test_slow_programs_are_used_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_SLOW_S", 0.0)  # any driver is slower than that
    own = folder(tmp_path, red=SEEDED, odd="nothing")
    fields = {"kind": "shaders", "programs": own, "builtin": False, "limit_s": 3600}
    section, notes = pools.parse(fields).resolved((1, 40, 40))
    assert section.left_out == ["odd.glsl"] and notes[0].startswith("pool.programs: odd.glsl is left out")
    told = r"pool\.programs: red\.glsl is slow, 16 images took \d+\.\d s; name it in pool\.left_out to go without it"
    assert len(notes) == 2 and re.fullmatch(told, notes[1])
    assert section.resolved((1, 40, 40)) == (section, []), "a run that goes on tries none"


def test_the_slowest_programs_are_named_first():
    notes = notes_of(check.Tried({}, {f"p{number:02}": 0.6 + number for number in range(12)}))
    assert notes[0].startswith("pool.programs: p11 is slow, 16 images took 11.6 s;") and len(notes) == 11
    assert notes[-1] == "pool.programs: 2 more are slow: p01, p00"


def test_many_programs_that_are_left_out_are_all_named(tmp_path):
    own = folder(tmp_path, good=SEEDED, **{f"bad{number:02}": "nothing" for number in range(14)})
    _, notes = pools.parse({"kind": "shaders", "programs": own, "builtin": False}).resolved((3, 16, 16))
    assert len(notes) == 11 and notes[-1].startswith("pool.programs: 4 more are left out: bad10.glsl, ")


# Bad input


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time": [3, 2]}, r"time: a range is \[least, most\], and 3 is more than 2; swap them"),
        ({"builtin": False}, r"name a folder, or set builtin to true"),
        ({"limit_s": 0}, r"pool\.limit_s"),
        ({"programs": ""}, r"programs is empty; name a folder, or set it to null"),
    ],
)
def test_a_section_that_cannot_work_is_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "shaders", **fields})


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 16, 16), "draw grey images or RGB, and the images have 2 channels"),
        ((3, 16, 7), "need 8 pixels a side, and the images have 16 x 7; set images.size"),
        ((1, 8, 20_000), r"up to [\d,]+ pixels a side, and the images have 8 x 20000; set images.size"),
    ],
)
def test_images_that_are_not_drawn_are_refused(shape, words):
    with pytest.raises(ConfigError, match=words):
        pool_of(shape)
    with pytest.raises(ConfigError, match=words):
        pool_of(shape, digest=digest(BUILTIN))


def test_a_folder_without_a_program_that_works_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"pool\.programs: .*absent cannot be read: No such file"):
        pool_of(programs=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"no file of .* ends in \.frag or \.glsl"):
        pool_of(programs=str(tmp_path))
    own = folder(tmp_path, bad="void main() { gl_FragColor = 1; }")
    with pytest.raises(ConfigError, match=r"none of 1 programs can be used; bad\.glsl: it does not compile: 0:1"):
        pool_of(programs=own, builtin=False)
    with pytest.raises(ConfigError, match=r"none of 1 programs can be used; bad\.glsl: it does not compile: 0:1"):
        pools.parse({"kind": "shaders", "programs": own, "builtin": False}).resolved(
            (3, 16, 16)
        )  # what a run does first
    with pytest.raises(ConfigError, match=r"pool\.left_out: there is no program named 'wod'"):
        pool_of(left_out=["wod"])
    with pytest.raises(ConfigError, match=r"none of 1 programs can be used; pool\.left_out: it names all of them"):
        pool_of(programs=own, builtin=False, left_out=["bad.glsl"])


def test_a_machine_without_opengl_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nowhere")
    install = r"run: pip install 'kdray\[gl\]', and .* apt-get install libegl1 libgl1 libgl1-mesa-dri"
    with pytest.raises(ConfigError, match=rf"pool\.kind: shaders need OpenGL 4\.3, and this .* none .*; {install}"):
        pool_of()
    (tmp_path / "moderngl.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"pool\.kind: shaders need moderngl \(not here\); {install}"):
        pool_of()


# Runs


def test_a_run_records_its_programs_and_goes_on_with_no_others(make_config, tmp_path):
    (tmp_path / "own").mkdir()
    own = folder(tmp_path / "own", good=SEEDED, more=IMAGE, bad="nothing")
    section = {"kind": "shaders", "programs": own, "builtin": False, "candidates": 300}
    config, notes = make_config(pool=section, student__epochs=2), Notes()
    directory = RunDirectory(tmp_path / "run")
    done = run(config, directory, local=True, observer=notes)
    assert [text for text in notes.texts if "bad.glsl is left out" in text]
    recorded = load_config(directory.config).pool
    assert recorded.left_out == ["bad.glsl"]
    before = [note for note in preview_pool(config, 2).notes if "bad.glsl is left out" in note]
    assert len(before) == 1, "a sheet of the config says so, too"
    assert list(preview_pool(load_config(directory.config), 2).notes) == []
    assert recorded.digest == digest([parse("good.glsl", SEEDED), parse("more.glsl", IMAGE)])
    student = (done.directory / "student.safetensors").read_bytes()
    for name in ("labelled.parquet", "student.safetensors", "metrics.json"):
        (done.directory / "rounds/002" / name).unlink()
    again = run(config, directory, local=True)
    assert (
        again.receipt.queries == done.receipt.queries
        and (again.directory / "student.safetensors").read_bytes() == student
    )
    (directory.path / "rounds/002/metrics.json").unlink()
    folder(Path(own), good=SEEDED.replace("iSeed.w", "iSeed.z"))
    with pytest.raises(ConfigError, match=r"the programs have changed since the run began"):
        resume(directory, local=True)
    with pytest.raises(RunDirectoryError, match=r"pool\.time"):
        run(make_config(pool=section | {"time": [0, 1]}, student__epochs=2), directory, local=True)


def test_programs_of_one_of_several_kinds_are_recorded_too(make_config, tmp_path, monkeypatch):
    folder(tmp_path, good=SEEDED, bad="nothing")
    monkeypatch.chdir(tmp_path.parent)
    kinds = ["mixup", {"kind": "shaders", "programs": tmp_path.name, "builtin": False, "candidates": 300}]
    config = make_config(pool={"kind": "auto", "of": kinds})
    pooled = read_pool(resolve(config))
    recorded = pooled.section.of[1]
    assert recorded.left_out == ["bad.glsl"] and recorded.digest and recorded.programs == str(tmp_path)
    assert any("bad.glsl is left out" in note for note in pooled.notes)
    again = resolve(config, config.model_copy(update={"pool": pooled.section}))
    assert again.pool == pooled.section and read_pool(again).notes == ()


def test_a_run_records_the_programs_of_drawn_images_and_goes_on_with_no_others(make_config, tmp_path):
    (tmp_path / "own").mkdir()
    own = folder(tmp_path / "own", good=SEEDED, more=IMAGE, bad="nothing")
    section = {"kind": "shaders", "programs": own, "builtin": False}
    images = {"source": "drawn", "size": 16, "colour": "grey", "pool": section, "count": 40}
    config, notes = make_config(images=images, pool={"kind": "lines", "candidates": 500}, student__epochs=1), Notes()
    directory = RunDirectory(tmp_path / "run")
    run(config, directory, local=True, observer=notes)
    assert [text for text in notes.texts if text.startswith("images.pool.programs: bad.glsl is left out")]
    recorded = load_config(directory.config).images.pool
    assert recorded.left_out == ["bad.glsl"]
    assert recorded.digest == digest([parse("good.glsl", SEEDED), parse("more.glsl", IMAGE)])
    run(config, directory, local=True)  # as the user wrote it
    sorted(directory.path.glob("rounds/*/metrics.json"))[-1].unlink()
    folder(Path(own), good=SEEDED.replace("iSeed.w", "iSeed.z"))
    with pytest.raises(ConfigError, match=r"images\.pool\.programs: the programs have changed since the run began"):
        resume(directory, local=True)
