"""Errors a user can make, at the command line: exit code 2, one message, no traceback, nothing paid, nothing left."""

import errno
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from aiohttp import web
from conftest import command, digits_config
from PIL import Image
from processes import kdray
from safetensors.torch import save_file
from test_http import answering, free_port, serving

from kdray.cli.common import exit_on_error
from kdray.config.load import load_config
from kdray.ledger import Ledger
from kdray.models.checkpoint import ModelCard, read_card, save_model
from kdray.models.classifier import build_model
from kdray.runs.run import choose_directory


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """A folder of files that something is wrong with."""
    folder = tmp_path_factory.mktemp("bad")

    def write(name: str, cells: list[bytes], column: str = "image") -> None:
        pq.write_table(
            pa.table({column: pa.array([{"bytes": data, "path": None} for data in cells])}), folder / f"{name}.parquet"
        )

    def png(height: int, value: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((height, 16), value, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    good = [png(16, k) for k in range(40)]
    write("plain", good)
    write("mixed", [*good[:4], png(9, 4)])
    write("corrupt", [*good[:4], good[4][:30], *good[5:]])
    write("one", good[:1])
    write("nocolumn", good, column="picture")
    (folder / "text.parquet").write_text("these are not the rows you are looking for")
    (folder / "folder").mkdir()
    other = build_model("lenet5", (1, 16, 16), 10, seed=0)
    save_model(folder / "lenet5.safetensors", other, ModelCard(model="lenet5", image_shape=(1, 16, 16), num_classes=10))
    save_file(other.network.state_dict(), folder / "lenet5-state.safetensors")
    (folder / "junk.safetensors").write_bytes(b"junk" * 50)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> tuple[Path, Path]:
    """A finished run of one round and 50 queries, and the config it came from."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"budget__queries": 50, "select__rounds": 1, "student__epochs": 1}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(digits_config(teacher_weights, **changes)))
    done = command("run", config, "--local", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run", config


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDRAY_RUNS", raising=False)


def everything(root: Path) -> dict[str, bytes | None]:
    """All files below `root` with their content, and all folders."""
    assert not (root / ".git").exists(), f"{root} is a clone with gigabytes in it: change to a folder of the test's own"
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def only_message(stderr: str) -> str:
    """The one message that standard error holds."""
    assert stderr.startswith("kdray: ") and stderr.endswith("\n"), stderr
    assert stderr.count("kdray: ") == 1 and "Traceback" not in stderr
    return stderr.removeprefix("kdray: ").removesuffix("\n")


def refused(*arguments: str | Path, unchanged: tuple[Path, ...] = ()) -> str:
    """The message of a command that must fail and leave everything as it was; runs it in this process."""
    roots = (Path.cwd(), *unchanged)
    before = [everything(root) for root in roots]
    done = command(*arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert [everything(root) for root in roots] == before
    return only_message(done.stderr)


def refused_process(*arguments: str | Path, unchanged: tuple[Path, ...] = (), env: dict | None = None) -> str:
    """The same as a user runs it: its own process."""
    roots = (Path.cwd(), *unchanged)
    before = [everything(root) for root in roots]
    done = kdray(*arguments, cwd=Path.cwd(), env=env)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert [everything(root) for root in roots] == before
    return only_message(done.stderr)


def spent(run: Path) -> int:
    """Queries charged in a run directory; none where there is no ledger."""
    if not (run / "ledger.sqlite").exists():
        return 0
    ledger = Ledger(run / "ledger.sqlite")
    try:
        return ledger.spent() + ledger.spent("evaluation")
    finally:
        ledger.close()


# A config that says the wrong thing

CONFIG = [
    ("budget.querys=3", "{config}: unknown key 'budget.querys'; did you mean 'queries'?"),
    ("sed=1", "{config}: unknown key 'sed'; did you mean 'seed'?"),
    ("lr=1", "{config}: unknown key 'lr'; did you mean 'pool.lr' or 'student.lr'?"),
    ("images.cuont=3", "{config}: unknown key 'images.cuont'; did you mean 'count'?"),
    (
        "budget.queries=many",
        "{config}: budget.queries: input should be a valid integer, unable to parse string as an integer, got 'many'",
    ),
    ("student.epochs=0", "{config}: student.epochs: input should be greater than or equal to 1, got 0"),
    (
        "images.source=web",
        "{config}: images.source: 'web' is not one of 'digits', 'drawn', 'folder', 'parquet', 'torchvision', nor "
        "module:object",
    ),
    (
        "pool.lambdas=[0.5, 1.5]",
        "{config}: pool.lambdas: λ = 1.5 lies outside [0, 1]; every λ must lie in [0, 1]",
    ),
    (
        "pool.lambdas={min: -0.1, max: 0.5, step: 0.1}",
        "{config}: pool.lambdas: λ = -0.1 lies outside [0, 1]; every λ must lie in [0, 1]",
    ),
    ("pool.lambdas=[]", "{config}: pool.lambdas: the grid is empty; give at least one λ in [0, 1]"),
    (
        "pool.lambdas={min: 0.9, max: 0.1, step: 0.1}",
        "{config}: pool.lambdas: the grid is empty; give at least one λ in [0, 1]",
    ),
    ("queries", "override 'queries' is not of the form key.sub=value, for example budget.queries=2000"),
    ("budget.queries=[", "override 'budget.queries=[': '[' is not readable YAML"),
]

# Images, and a budget, that do not do
PARQUET = "images={source: parquet, path: {bad}/%s.parquet}"
MATERIAL = [
    ("images.count=401", "images.count: 401 images wanted, but digits holds 400"),
    ("images.rows=1700:1800", "images.rows: 1700:1800 reaches past the 1,797 images of digits"),
    (PARQUET % "one", "a mixup pool needs at least two images to mix, got 1; give more (images.count)"),
    ("images.count=1", "a mixup pool needs at least two images to mix, got 1; give more (images.count)"),
    (
        PARQUET % "mixed",
        "images: row 4 of {bad}/mixed.parquet is 9x16 grey, but row 0 of {bad}/mixed.parquet is 16x16 grey; "
        "set images.size (and images.colour) to bring all images to one shape",
    ),
    (PARQUET % "corrupt", "images: row 4 of {bad}/corrupt.parquet is not a readable image (*)"),
    (
        PARQUET % "nocolumn",
        "images.path: {bad}/nocolumn.parquet has no image column; expected 'image' or 'img', found 'picture'; "
        "name it as images.image_column",
    ),
    (PARQUET % "text", "images.path: {bad}/text.parquet is not a readable parquet file (*)"),
    (PARQUET % "missing", "images.path: no parquet file at {bad}/missing.parquet"),
    ("images={source: folder, path: {bad}/folder}", "images: {bad}/folder holds no images"),
    ("images={source: torchvision, name: MNISTT, root: .}", "images.name: torchvision.datasets has no 'MNISTT'"),
    (
        "budget.queries=39",
        "budget.queries: 39 queries do not pay for round 0, which asks for 40 images; "
        "raise budget.queries to at least 42, lower select.first, or give fewer images (images.count)",
    ),
    (
        "budget.queries=41",
        "budget.queries: after round 0 1 of 41 queries are left, too few for select.rounds = 2 rounds of 1; "
        "raise budget.queries to at least 42",
    ),
    (
        "budget.queries=821",
        "budget.queries: 781 candidates are to be chosen after round 0, but the pool over 40 images has only 780 for "
        "active-mixup; lower budget.queries to 820 or give more images (images.count)",
    ),
]

# A teacher, a test set, a student that do not fit
PARTS = [
    ("teacher.weights={bad}/none.safetensors", "teacher.weights: no file at {bad}/none.safetensors; check the path"),
    ("teacher.weights={bad}", "teacher.weights: no file at {bad}; check the path"),
    (
        "teacher.weights={bad}/lenet5.safetensors",
        "teacher.model is 'small-cnn', but {bad}/lenet5.safetensors holds the weights of a 'lenet5'",
    ),
    (
        ["teacher.weights={bad}/lenet5-state.safetensors", "teacher.classes=10"],
        "teacher.weights {bad}/lenet5-state.safetensors: the weights do not fit the model: 17 missing (first: "
        "0.1.weight); 7 unknown (first: 0.0.bias); 0.0.weight is [6, 1, 5, 5], the model has [16, 1, 3, 3]",
    ),
    (
        "teacher.weights={bad}/lenet5-state.safetensors",
        "teacher.classes is missing, and {bad}/lenet5-state.safetensors does not say how many classes it has",
    ),
    ("teacher.weights={bad}/junk.safetensors", "{bad}/junk.safetensors is not a readable safetensors file (*)"),
    (
        ["teacher.weights={bad}/junk.safetensors", "teacher.model=null", "teacher.classes=10"],
        "teacher.weights: {bad}/junk.safetensors is neither TorchScript nor a torch.export file (.pt2): *; "
        "for plain safetensors set teacher.model",
    ),
    ("teacher.classes=9", "teacher.classes gives 9 classes, but * holds a model of 10"),
    ("teacher.answers=top11", "teacher.answers: top11 of a teacher with 10 classes; use top10 at most, or soft"),
    (
        "teacher={kind: python, function: 'no_such_module:f', classes: 10}",
        "teacher.function: cannot import no_such_module:f (ModuleNotFoundError: No module named 'no_such_module')*",
    ),
    (
        ["images.size=8", "test.size=8"],
        "the teacher takes images of shape (1, 16, 16) (channels, height, width), but is asked about images of "
        "(1, 8, 8); set teacher.input.size and teacher.input.colour",
    ),
    (
        "test.size=8",
        "test: its images have shape (1, 8, 8), the images to distil with (1, 16, 16); "
        "set size and colour of both alike",
    ),
    (
        "labelled={source: parquet, path: {bad}/plain.parquet}",
        "labelled: {bad}/plain.parquet holds no labels; labels are needed here; its columns are 'image'; name one as "
        "labelled.label_column",
    ),
    ("student.augment.shift=16", "student.augment.shift: 16 pixels do not fit images of 16x16"),
]


def matches(message: str, pattern: str) -> bool:
    """Whether a message is the pattern, in which * stands for words of a library."""
    first, *rest = pattern.split("*")
    if not rest:
        return message == pattern
    if not message.startswith(first):
        return False
    place = len(first)
    for part in rest:
        found = message.find(part, place) if part else place
        if found < 0:
            return False
        place = found + len(part)
    return not rest[-1] or message.endswith(rest[-1])


def filled(overrides: str | list[str], bad: Path) -> list[str]:
    return [text.replace("{bad}", str(bad)) for text in ([overrides] if isinstance(overrides, str) else overrides)]


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("overrides", "pattern"), CONFIG + MATERIAL)
def test_a_bad_config_is_refused_by_run_and_by_plan(command, overrides, pattern, bad, config_file):
    path = config_file()
    options = ["--local", "--out", "out"] if command == "run" else []
    message = refused(command, path, *filled(overrides, bad), *options, unchanged=(bad,))
    assert matches(message, pattern.replace("{bad}", str(bad)).replace("{config}", str(path))), message
    assert "\n" not in message and not Path("out").exists()


@pytest.mark.parametrize(("overrides", "pattern"), PARTS)
def test_parts_that_do_not_fit_are_refused_before_anything_is_paid(overrides, pattern, bad, config_file):
    message = refused("run", config_file(), *filled(overrides, bad), "--local", "--out", "out", unchanged=(bad,))
    assert matches(message, pattern.replace("{bad}", str(bad))), message
    assert "\n" not in message and not Path("out").exists()


def test_without_out_a_refused_run_makes_no_runs_folder(config_file):
    refused("run", config_file(), "images.count=401", "--local")
    assert not Path("runs").exists()


def test_several_problems_are_one_message(config_file):
    message = refused("run", config_file(), "sed=1", "images.count=0", "student.epochs=x", "--local", "--out", "out")
    assert len(message.splitlines()) == 3
    for part in ("unknown key 'sed'", "images.count: ", "student.epochs: "):
        assert part in message


# A teacher behind HTTP

V2 = {"kind": "http", "model": "m", "classes": 10, "headers": {"Authorization": "Bearer ${KDRAY_TEST_KEY}"}}


def metadata(inputs: dict | None = None, outputs: dict | None = None) -> dict:
    """What a v2 server says of a model for 16x16 digits."""
    entry = {"name": "image", "datatype": "UINT8", "shape": [-1, 1, 16, 16]} | (inputs or {})
    given = {"name": "p", "datatype": "FP32", "shape": [-1, 10]} | (outputs or {})
    return {"name": "m", "versions": ["1"], "platform": "x", "inputs": [entry], "outputs": [given]}


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("KDRAY_TEST_KEY", "sk-4f9Zq7Tw2Xn8")


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
    ("status", "body", "changes", "pattern"),
    [
        (401, {"error": "who is sk-4f9Zq7Tw2Xn8?"}, {}, "{model} refuses the key (401: who is "
         "${KDRAY_TEST_KEY}?); check teacher.headers and the key"),
        (403, {"error": "not you"}, {}, "{model} refuses the key (403: not you); check teacher.headers and the key"),
        (404, {"error": "no m"}, {}, "{model} does not exist there (404: no m); check teacher.url and teacher.model; "
         "if the server does not describe models, set teacher.input.name"),
        (200, "<p>Hello</p>", {}, "{model} replied text/html, not JSON: '<p>Hello</p>'; check teacher.url"),
        (302, b"", {}, "{model} answers 302, not 200 (it points to elsewhere); set teacher.url to where the model is"),
        (200, metadata(), {"classes": 9}, "output 'p' of the model has shape [-1, 10], teacher.classes says 9: check "
         "teacher.classes and teacher.output"),
        (200, metadata({"shape": [-1, 1, 28, 28]}), {}, "the model takes images of shape [-1, 1, 28, 28], kdray "
         "would send [-1, 1, 16, 16]; set size, colour and layout of teacher.input to bring them together"),
        (200, metadata({"datatype": "FP32"}), {}, "teacher.input.pixels: the model takes FP32, kdray would send "
         "UINT8; set teacher.input.pixels to unit, or teacher.input.datatype to FP32 if it takes 0..255"),
        (200, metadata() | {"outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 10]} for name in "pq"]}, {},
         "the model has several outputs that can hold the answer: 'p', 'q'; set teacher.output to the right one"),
        (200, metadata(), {"input": {"name": "x"}}, "teacher.input.name: the model has no input 'x'; it has 'image'"),
        (200, metadata(outputs={"datatype": "INT64", "shape": [-1]}), {}, "the teacher gives no probabilities; set "
         "teacher.answers to hard for labels"),
        (200, metadata(), {"answers": "top11"}, "teacher.answers: top11 of a teacher with 10 classes; use top10 at "
         "most, or soft"),
        (200, metadata(), {"ca": "no.pem"}, "teacher.ca: no file at */no.pem"),
        (200, metadata(), {"headers": {"Authorization": "Bearer ${KDRAY_NO_SUCH_KEY}"}}, "teacher.url, "
         "teacher.headers or teacher.request needs the environment variable KDRAY_NO_SUCH_KEY, which is not set; "
         "export KDRAY_NO_SUCH_KEY=... and start again"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_fit_is_found_out_before_anything_is_paid(status, body, changes, pattern, config_file):
    with serving(answering(status, body)) as server:
        path = config_file(teacher=V2 | {"url": server.url} | changes)
        message = refused("run", path, "--local", "--out", "out")
        assert server.posts == []
    assert matches(message, pattern.replace("{model}", f"{server.url}/v2/models/m")), message
    assert "\n" not in message and not Path("out").exists()


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("http://127.0.0.1:{port}",
         "no server answers at http://127.0.0.1:{port}/v2/models/m (*Connect call failed*): is the server up, is "
         "teacher.url right?"),
        ("http://nowhere.invalid",
         "no server answers at http://nowhere.invalid/v2/models/m (*): is the server up, is "
         "teacher.url right?"),
        ("http://nowhere..invalid", "teacher.url: http://nowhere..invalid/v2/models/m is not an address"),
        ("nowhere:80", "{config}: teacher.url: 'nowhere:80' is not an address; write it as http://HOST:PORT or "
         "https://HOST/PATH"),
        ("http://127.0.0.1/?key=sk-4f9Zq7Tw2Xn8", "{config}: teacher.url: the address holds 'key' in clear; write "
         "key=${VARIABLE} and export VARIABLE"),
    ],
)  # fmt: skip
def test_a_server_that_is_not_there_is_found_out_before_anything_is_paid(url, pattern, config_file):
    port = str(free_port())
    path = config_file(teacher=V2 | {"url": url.replace("{port}", port)})
    message = refused("run", path, "--local", "--out", "out")
    assert matches(message, pattern.replace("{port}", port).replace("{config}", str(path))), message
    assert "\n" not in message and not Path("out").exists()


@pytest.mark.parametrize(
    ("status", "body", "charged", "pattern"),
    [
        (401, {"error": "who?"}, 0, "{url} refuses the key (401: who?); check teacher.headers and the key"),
        pytest.param(404, b"", 0, "{url} does not exist there (404); check teacher.url", marks=pytest.mark.storm),
        (
            400,
            {"detail": "no"},
            0,
            "{url} does not take the request (400: no); the teacher has answered no image yet, and did not take "
            "image 0 of images, image 1 of images, image 2 of images",
        ),
        pytest.param(
            307,
            b"",
            0,
            "{url} answers 307, not 200 (it points to elsewhere); set teacher.url to where the model is",
            marks=pytest.mark.storm,
        ),
        pytest.param(
            None,
            b"",
            0,
            "no server answers at {url} (*): is the server up, is teacher.url right?",
            marks=pytest.mark.storm,
        ),
        (200, "<p>Hello</p>", 1, "{url} replied text/html, not JSON: '<p>Hello</p>'; check teacher.url"),
        pytest.param(
            200,
            {"probabilities": [[0.5, 0.5]]},
            1,
            "the teacher answered 2 numbers for an image, teacher.classes says 10",
            marks=pytest.mark.storm,
        ),
        pytest.param(
            200,
            {"probabilities": [{"a": 1}]},
            1,
            "the teacher answered class 'a', which teacher.classes does not name; "
            "keys that are no classes belong into teacher.reply.ignore",
            marks=pytest.mark.storm,
        ),
        (
            200,
            {"probabilities": [[91, 1, 1, 1, 1, 1, 1, 1, 1, 1]]},
            1,
            "the teacher's probabilities sum to 100, not 1; they look like percentages: set teacher.outputs to percent",
        ),
        pytest.param(
            200,
            {"scores": 3},
            1,
            "the teacher's reply has nothing at 'probabilities': {'scores': 3}; check teacher.reply",
            marks=pytest.mark.storm,
        ),
    ],
)
def test_a_server_without_metadata_is_found_out_with_one_query_at_most(status, body, charged, pattern, config_file):
    """And what it cost is in the ledger; with the right address the run goes on."""
    with serving(answering(status or 200, body)) as server:
        url = f"http://127.0.0.1:{free_port()}/p" if status is None else f"{server.url}/p"
        teacher = {"kind": "http", "protocol": "json", "classes": 10, "name": "mine", "url": url}
        path = config_file(teacher=teacher, select__rounds=0, budget__queries=41, student__epochs=1, test=None)
        done = command("run", path, "--local", "--out", "out")
        assert len(server.requests) == {None: 0, 400: 3}.get(status, 1)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    message = only_message(done.stderr[done.stderr.index("kdray: ") :])
    end = "" if pattern.endswith("?") else "."
    going_on = f"{end} What was answered is kept; go on with: kdray resume {Path('out').resolve()}"
    assert matches(message, pattern.replace("{url}", url) + going_on), message
    assert "\n" not in message and spent(Path("out")) == charged

    async def right(request: web.Request) -> web.Response:
        return web.json_response({"probabilities": [[0.1] * 10] * len((await request.json())["images"])})

    with serving(right) as server:
        again = command("run", path, f"teacher.url={server.url}/p", "--local", "--out", "out")
    assert again.returncode == 0, again.stderr
    assert spent(Path("out")) == 40 + charged


# Files that are no config


@pytest.mark.parametrize("command", ["run", "plan", "teacher train"])
@pytest.mark.parametrize(
    ("content", "start"),
    [
        (None, "no config file at {path}"),
        (b"a: [1\nb: }", "{path} is not readable YAML: "),
        (b"\xff\xfe\x00", "{path} is not readable YAML: "),
        (b"just words", "{path}: expected a mapping of sections (images, teacher, budget, ...), got str"),
        (b"", "{path}: expected a mapping of sections (images, teacher, budget, ...), got NoneType"),
    ],
    ids=["missing", "broken", "binary", "words", "empty"],
)
def test_a_file_that_is_no_config_is_refused_by_every_command(command, content, start, tmp_path):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    assert refused(*command.split(), path).startswith(start.format(path=path))


def test_a_folder_in_place_of_a_config_is_told_apart(tmp_path):
    message = refused("run", tmp_path, "--local")
    assert message == f"{tmp_path} is a folder; give the YAML file itself, or use 'kdray resume' for a run"


# Run directories


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("seed=9", "seed: 3 -> 9"),
        ("budget.queries=60", "budget.queries: 50 -> 60"),
        ("teacher.answers=hard", "teacher.answers: 'soft' -> 'hard'"),
        ("pool.lambdas=[0.5]", "pool.lambdas: [0.3, 0.5, 0.7] -> [0.5]"),
    ],
)
def test_a_directory_that_holds_another_config_is_left_alone(override, change, finished):
    run, config = finished
    message = refused("run", config, override, "--local", "--out", run, unchanged=(run,))
    assert message == (
        f"{run} holds a run of another config ({change}); choose another --out, "
        f"or go on with the old one: kdray resume {run}"
    )
    assert spent(run) == 150


@pytest.mark.parametrize("names", [["thesis.tex"], ["thesis.tex", ".lock", "ledger.sqlite"]])
def test_a_directory_of_other_things_is_left_alone(names, config_file, tmp_path):
    (tmp_path / "out").mkdir()
    for name in names:
        (tmp_path / "out" / name).write_text("chapter 1")
    message = refused("run", config_file(), "--local", "--out", tmp_path / "out")
    assert message == f"{tmp_path / 'out'} is not empty and holds no run; choose another --out"


def test_a_file_is_no_run_directory(config_file, tmp_path):
    path = config_file()
    assert refused("run", path, "--local", "--out", path) == f"{path} is a file; choose another --out"
    message = refused("run", path, "--local", "--out", path / "below")
    assert message == f"cannot work in {path / 'below'}: {path} is not a folder; choose another --out"


def test_a_file_in_the_place_of_a_run_is_passed_over(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config_file()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / Path(path).stem).write_text("a file")
    assert choose_directory(load_config(path), Path(path).stem).path.name == f"{Path(path).stem}-2"


def test_an_error_of_the_system_about_a_place_is_a_message(capsys):
    for error, said in (
        (OSError(errno.ENOSPC, "No space left on device"), "kdray: No space left on device; make room, or choose"),
        (
            PermissionError(errno.EACCES, "Permission denied", "sw/.lock"),
            "kdray: sw/.lock: Permission denied; choose another",
        ),
    ):
        with pytest.raises(typer.Exit) as ended, exit_on_error():
            raise error
        assert ended.value.exit_code == 2 and said in capsys.readouterr().err
    with pytest.raises(OSError, match="odd"), exit_on_error():
        raise OSError(errno.EIO, "odd")


@pytest.mark.parametrize("place", ["nothing", "folder", "notes.txt"])
def test_where_there_is_no_run_there_is_nothing_to_resume_or_report(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("chapter 1")
    path = tmp_path / place
    message = refused("resume", path, "--local")
    assert message == f"{path} holds no run; start one with 'kdray run CONFIG'"
    assert refused("report", path) == f"{path} holds no run"


def test_a_damaged_config_of_a_run_is_named(finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # kdray was here
    (tmp_path / "run" / "config.yaml").write_text("seed: [")
    for arguments in (("resume", "run", "--local"), ("run", finished[1], "--local", "--out", "run"), ("report", "run")):
        assert refused(*arguments).startswith(f"{tmp_path / 'run' / 'config.yaml'} is not readable YAML: ")


# kdray teacher train


def test_a_teacher_that_is_there_is_not_trained_again_unasked(config_file, teacher_weights):
    message = refused("teacher", "train", config_file(), unchanged=(teacher_weights.parent,))
    assert message == f"teacher.weights: {teacher_weights} is there already; give --force to train it again"


def test_with_force_a_teacher_is_trained_again(config_file, tmp_path):
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"junk")
    recipe = "teacher.train={images: {source: digits, rows: '0:50', size: 16}, epochs: 1}"
    arguments = ["teacher", "train", str(config_file()), f"teacher.weights={weights}", recipe]
    assert "give --force" in refused(*arguments)
    done = command(*arguments, "--force")
    assert done.returncode == 0 and f"wrote {weights}" in done.stdout, done.stderr
    assert read_card(weights).model == "small-cnn"


@pytest.mark.parametrize(
    ("recipe", "start"),
    [
        ("null", "teacher.train is missing: "),
        ("{images: {source: folder, path: nowhere}}", "teacher.train.images.path: no folder at "),
        ("{images: {source: digits, count: 5000}}", "teacher.train.images.count: 5,000 images wanted, but digits"),
        ("{images: {source: parquet, path: '{bad}/plain.parquet'}}", "teacher.train.images: * holds no labels; *"),
    ],
)
def test_a_teacher_whose_recipe_is_wrong_is_not_written(recipe, start, bad, config_file):
    recipe = recipe.replace("{bad}", str(bad))
    message = refused("teacher", "train", config_file(), "teacher.weights=new.safetensors", f"teacher.train={recipe}")
    assert matches(message, f"{start}*"), message


# An address where a file of this machine is wanted

ADDRESS = "s3://bucket/a"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["plan", ADDRESS], ["run", ADDRESS], ["preview", ADDRESS], ["evaluate", ADDRESS], ["export", ADDRESS]),
        *(["train", ADDRESS], ["ledger", ADDRESS], ["report", ADDRESS], ["sweep", ADDRESS], ["init", ADDRESS]),
        *(["preview", "{config}", "--out", ADDRESS], ["sweep", "{config}", "--out", ADDRESS]),
        *(["sweep", "--resume", ADDRESS], ["teacher", "serve", "--model", ADDRESS], ["init", "--images", ADDRESS]),
    ],
)
def test_an_address_is_no_local_path(arguments, config_file, tmp_path, monkeypatch):
    path = config_file()
    monkeypatch.chdir(tmp_path)
    message = refused(*(str(path) if word == "{config}" else word for word in arguments))
    assert message.startswith(f"{ADDRESS} is an address; only 'kdray run --out'"), message


@pytest.mark.parametrize("key", ["images", "test"])
def test_a_config_reads_local_files_alone(key, config_file):
    message = refused("plan", config_file(), f"{key}={{source: folder, path: '{ADDRESS}'}}")
    assert message.endswith(
        f"{key}: {ADDRESS} is an address; only 'kdray run --out', 'kdray resume' and 'kdray status' "
        "take one; give a local path"
    )


# Wrong words on the command line


@pytest.mark.parametrize(
    "arguments",
    [
        *(["run"], ["resume"], ["report"], ["plan"], ["frobnicate"], ["run", "x.yaml", "--frob"], ["teacher", "x"]),
        *(["run", "x.yaml", "--out", "a", "--out=b"], ["ledger", "x", "--budget", "3", "--budget", "4"]),
    ],
)
def test_wrong_words_get_a_usage_line_and_exit_code_2(arguments, tmp_path):
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Usage: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# The same in processes of their own


@pytest.mark.storm
def test_processes_end_with_the_same_message_and_code(config_file, finished, bad):
    path = config_file()
    out = ["--local", "--out", "out"]
    assert refused_process("run", path, "budget.querys=3", *out) == (
        f"{path}: unknown key 'budget.querys'; did you mean 'queries'?"
    )
    message = refused_process("run", path, *filled(PARQUET % "corrupt", bad), *out)
    assert message.startswith(f"images: row 4 of {bad}/corrupt.parquet is not a readable image (")
    weights = ["teacher.classes=10", f"teacher.weights={bad}/lenet5-state.safetensors"]
    assert "the weights do not fit the model" in refused_process("run", path, *weights, *out, unchanged=(bad,))
    run, config = finished
    message = refused_process("run", config, "seed=9", "--local", "--out", run, unchanged=(run,))
    assert message.startswith(f"{run} holds a run of another config (seed: 3 -> 9)")
    assert refused_process("resume", "nothing").startswith(f"{Path.cwd() / 'nothing'} holds no run")


@pytest.mark.storm
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: no connection (Connection refused); is the head node running? "),
        ("nonsense", "RAY_ADDRESS=nonsense is not an address; set it to auto or to HOST:PORT"),
        pytest.param(
            "http://127.0.0.1:8265",
            "RAY_ADDRESS=http://127.0.0.1:8265 is an address for 'ray job submit'",
            marks=pytest.mark.storm,
        ),
    ],
)
def test_a_ray_address_that_leads_nowhere_fails_soon_and_pays_nothing(address, message, finished):
    config, out = finished[1], Path("out")
    began = time.monotonic()
    done = kdray("run", config, "--out", out, cwd=Path.cwd(), env={"RAY_ADDRESS": address})
    assert time.monotonic() - began < 30
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == "" and only_message(done.stderr).startswith(message)
    assert "\n" not in only_message(done.stderr)
    assert not out.exists()
    again = command("run", config, "--local", "--out", out)
    assert again.returncode == 0, again.stderr
    assert spent(out) == 150
    assert (out / "student.safetensors").read_bytes() == (finished[0] / "student.safetensors").read_bytes()
