"""Image sets that change while a run is stopped: it does not go on with others, and goes on with the old ones."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import StopAtPhase, command

from kdray.config.load import load_config
from kdray.errors import ImageSetError
from kdray.images.base import read_images
from kdray.images.digits import DigitsImages
from kdray.images.folder import FolderImages
from kdray.images.parquet import ParquetImages
from kdray.ledger import Ledger
from kdray.runs.directory import RunDirectory
from kdray.runs.run import resume, run
from kdray.utils.seeds import numpy_generator

DIGITS = DigitsImages().open("images")


def write(folder: Path, names: dict[str, int]) -> Path:
    """Digits by number, as files of these names."""
    for name, number in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        DIGITS.decode(number).resize((16, 16)).save(folder / name)
    return folder


@pytest.fixture
def photographs(tmp_path) -> Path:
    return write(tmp_path / "photographs", {f"{number % 3}/{number:02d}.png": 1000 + number for number in range(42)})


def digest(source) -> str:
    return source.resolved("images")[0].digest


def spent(directory: RunDirectory) -> int:
    ledger = Ledger(directory.ledger, read_only=True)
    try:
        return ledger.spent()
    finally:
        ledger.close()


def sections(folder: Path) -> dict[str, dict]:
    """Changes of the digits' config by which each of its sets is read from the folder."""
    source = {"source": "folder", "path": str(folder), "size": 16, "colour": "grey"}
    crops = {"source": "folder", "path": str(folder)}
    return {
        "images": {"images": source},
        "labelled": {"labelled": source},
        "test": {"test": source},
        "pool.images": {"pool": {"kind": "crops", "candidates": 500, "images": crops}},
        "pool.of.1.images": {
            "pool": {
                "kind": "mixture",
                "of": [{"kind": "lines"}, {"kind": "crops", "images": crops}],
                "candidates": 500,
            }
        },
    }


@pytest.mark.parametrize(
    "field",
    [
        "images",
        *(
            pytest.param(field, marks=pytest.mark.storm)
            for field in ("labelled", "test", "pool.images", "pool.of.1.images")
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_images(field, photographs, make_config, tmp_path):
    config, directory = make_config(**sections(photographs)[field]), RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(config, directory, local=True, observer=StopAtPhase(7))
    paid = spent(directory)
    more = photographs / "1" / "10a.png"
    write(photographs, {"1/10a.png": 1500})
    for go_on in (lambda: resume(directory, local=True), lambda: run(config, directory, local=True)):
        with pytest.raises(ImageSetError) as error:
            go_on()
        assert str(error.value).startswith(f"{field}: the images of {photographs} have changed since the run began")
        assert "there are 43 now" in str(error.value) and "bring back the old ones" in str(error.value)
        assert spent(directory) == paid
    more.unlink()
    resume(directory, local=True)
    run(config, RunDirectory(tmp_path / "whole"), local=True)
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("run", "whole")]
    assert students[0] == students[1]


def test_a_run_of_before_records_its_images_when_it_goes_on(photographs, make_config, tmp_path):
    config, directory = make_config(**sections(photographs)["images"]), RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(config, directory, local=True, observer=StopAtPhase(7))
    recorded = yaml.safe_load(directory.config.read_text())
    known = recorded["images"].pop("digest")
    assert recorded["test"].pop("digest")
    directory.config.write_text(yaml.safe_dump(recorded))
    resume(directory, local=True)
    assert load_config(directory.config).images.digest == known
    assert load_config(directory.config).test.digest is not None


def test_what_is_in_a_folder_tells_one_set_from_another(photographs, tmp_path):
    def now() -> str:
        return digest(FolderImages(path=str(photographs)))

    before = now()
    (photographs / "notes.txt").write_text("no image")
    assert now() == before
    copy = write(tmp_path / "copy", {f"{number % 3}/{number:02d}.png": 1000 + number for number in range(42)})
    assert digest(FolderImages(path=str(copy))) == before, "wherever it lies"
    file = photographs / "0" / "00.png"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    assert now() != before, "another size"
    file.write_bytes(whole)
    assert now() == before
    file.rename(photographs / "0" / "0.png")
    assert now() != before, "another name"


def test_what_is_in_parquet_files_tells_one_set_from_another(tmp_path):
    def table(rows: int, name: str) -> None:
        cells = [{"bytes": (tmp_path / "digits" / f"{number}.png").read_bytes()} for number in range(rows)]
        pq.write_table(pa.table({"image": cells}), tmp_path / name)

    write(tmp_path / "digits", {f"{number}.png": number for number in range(5)})
    table(4, "a.parquet")
    source = ParquetImages(path=str(tmp_path / "*.parquet"))
    before = digest(source)
    assert digest(source) == before
    table(5, "a.parquet")
    assert digest(source) != before
    table(4, "a.parquet")
    assert digest(source) == before
    table(1, "b.parquet")
    assert digest(source) != before


def test_a_source_that_lists_nothing_is_known_by_its_number_of_images(own):
    module = own(
        "import numpy as np\nfrom PIL import Image\nfrom kdray.images.base import ImageRows, ImageSource\n"
        "class Ramp(ImageSource):\n    steps: int = 4\n"
        "    def open(self, field):\n"
        "        return ImageRows(name='ramp', rows=self.steps, where=str,\n"
        "            decode=lambda row: Image.fromarray(np.full((2, 3), row, dtype=np.uint8)))\n"
    )
    from kdray.images.base import sources

    def ramp(steps: int):
        return sources.get(f"{module}:Ramp").model_validate({"source": f"{module}:Ramp", "steps": steps})

    assert digest(ramp(4)) == digest(ramp(4)) != digest(ramp(5))
    other = ramp(5).model_copy(update={"digest": digest(ramp(4))})
    with pytest.raises(
        ImageSetError, match=r"images: the images of ramp have changed since the run began \(there are 5"
    ):
        read_images(other, generator=numpy_generator(0, "images"))


def test_the_message_at_the_command_line(photographs, config_file, tmp_path):
    path, out = config_file(**sections(photographs)["images"], select__rounds=0, budget__queries=42), tmp_path / "run"
    assert command("run", path, "--out", out, "--local").returncode == 0
    (photographs / "0" / "00.png").unlink()
    assert command("resume", out, "--local").returncode == 0, "a run that is complete reads no images"
    RunDirectory(out).artefact(0, "train").unlink()
    done = command("resume", out, "--local")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"kdray: images: the images of {photographs} have changed since the run began" in done.stderr
