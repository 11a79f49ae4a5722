"""A folder with a web page that runs the student in the browser: drop an image on it, and it names the class."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Runner, register_format
from kdray.export.formats.onnx import Onnx

_PAGE = Path(__file__).parents[1] / "web"
_RUNTIME = "onnxruntime-web"


@register_format
class Web(Onnx):
    """The student as ONNX, the page, and a module for pages of one's own. The runtime comes with `npm install`."""

    name: ClassVar[str] = "web"
    suffix: ClassVar[str] = ""

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`.

        Raises:
            ExportError: images have neither one channel nor three, which is all that a browser shows.
        """
        if (channels := about.card.image_shape[0]) not in (1, 3):
            raise ExportError(f"--format web is for images of 1 or 3 channels, and the student's have {channels}")
        path.mkdir()
        super().write(graph, about, path / "student.onnx")
        student = {"names": about.names, "shape": about.card.image_shape}
        (path / "student.json").write_text(json.dumps(student, ensure_ascii=False), encoding="utf-8")
        package = {"private": True, "dependencies": {_RUNTIME: "^1.20.0"}}
        (path / "package.json").write_text(json.dumps(package, indent=2) + "\n")
        for name in ("index.html", "classifier.mjs", "README.md"):
            shutil.copyfile(_PAGE / name, path / name)

    def load(self, path: Path) -> Runner:
        """See `Format`: in ONNX Runtime on this machine, which the browser's is built from."""
        return super().load(path / "student.onnx")
