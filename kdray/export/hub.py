"""A student as a class of the Hugging Face Hub, and its model card. Needs `kdray[hf]`."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from kdray.export.base import About, Deployed
from kdray.models.classifier import build_model


class Student(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="kdray",
    tags=["kdray", "image-classification", "knowledge-distillation"],
    pipeline_tag="image-classification",
):
    """uint8 images [B, C, H, W] in, probabilities float32 [B, K] out.

    Args:
        model: name of the network, see `kdray.models.base.find_model`.
        image_shape: (C, H, W).
        label_names: of the classes, K.
        mean, std: of each channel, in units of pixel / 255.
        temperature: that divides the logits.
    """

    def __init__(
        self,
        model: str,
        image_shape: Sequence[int],
        label_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.student = build_model(
            model, (channels, height, width), len(label_names), seed=0, mean=list(mean), std=list(std)
        )
        self.label_names = list(label_names)
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities."""
        found: Tensor = Deployed(self.student, self.temperature)(images)
        return found


def model_card(about: About) -> str:
    """README.md of the folder. The licence and the intended use are left to the user."""
    channels, height, width = about.card.image_shape
    names = ", ".join(about.names[:20]) + (f" and {len(about.names) - 20} more" if len(about.names) > 20 else "")
    rows: dict[str, Any] = {
        "network": about.card.model,
        "input": f"uint8 images of {channels} x {height} x {width} (channels, height, width), not resized",
        "output": f"probabilities of {len(about.names)} classes: {names}",
        "temperature": f"{about.temperature:g}, which divides the logits",
    } | dict(about.figures)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: kdray
pipeline_tag: image-classification
tags: [kdray, knowledge-distillation]
license: other  # yours to choose: see whether the terms of the teacher allow a student, and say so here
---

# A student made with kdray

It was trained on the answers of a *teacher*, a model that was asked about images, and learnt to answer like it.

| | |
|---|---|
{table}

```python
from kdray.export.hub import Student

student = Student.from_pretrained("THIS FOLDER")
probabilities = student(images)  # uint8 [batch, {channels}, {height}, {width}]
```

## Limits

- It repeats the teacher's mistakes, and makes some of its own.
- Its figures are those of images like the test images. Of any other image, too, it names one of these classes.
- Intended use, licence and what else users should know: to be written by whoever publishes it.
"""
