"""A folder as the Hugging Face Hub has them: weights, config.json and a model card."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import ClassVar

from kdray.errors import ExportError
from kdray.export.base import About, Deployed, Format, Runner, register_format
from kdray.utils.files import shown


@register_format
class HuggingFace(Format):
    """`kdray.export.hub.Student.from_pretrained(folder)` opens it; needs kdray, since the network's code is kdray's."""

    name: ClassVar[str] = "hf"
    suffix: ClassVar[str] = ""
    extra: ClassVar[str] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("huggingface_hub",)

    def write(self, graph: Deployed, about: About, path: Path) -> None:
        """See `Format`."""
        if shown(path) != str(path):
            raise ExportError(
                f"--out: {shown(path)}: the libraries of the Hub read no path that is not UTF-8; give another --out"
            )
        from kdray.export.hub import Student, model_card

        student = graph.student
        hub = Student(
            model=about.card.model,
            image_shape=list(about.card.image_shape),
            label_names=list(about.names),
            mean=student.mean.flatten().tolist(),
            std=student.std.flatten().tolist(),
            temperature=graph.temperature,
        )
        hub.student.load_state_dict(student.state_dict())
        hub.save_pretrained(path)
        (path / "README.md").write_text(model_card(about), encoding="utf-8")

    def load(self, path: Path) -> Runner:
        """See `Format`."""
        from kdray.export.hub import Student

        with redirect_stdout(io.StringIO()):  # it says where the weights are
            student = Student.from_pretrained(str(path))
        return student.eval()
