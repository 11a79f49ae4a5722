"""`kdray serve`: the student of a run, or a model file, as something that answers requests."""

from pathlib import Path

import numpy as np
import torch

from kdray.export.base import check_temperature
from kdray.models.checkpoint import load_student, read_own_card
from kdray.models.predict import predict_log_probs
from kdray.runs.directory import find_student
from kdray.runs.teachers import Served
from kdray.teachers.answers import AnswerFormat
from kdray.teachers.function import FunctionTeacher


def student_to_serve(where: Path, temperature: float = 1.0, threads: int = 1) -> Served:
    """The newest student of a run, or the one in a model file. A request is answered as it comes, without padding.

    Args:
        temperature: divides the logits.
        threads: of the CPU.

    Raises:
        ConfigError: there is neither, or the temperature is not above 0.
        RunDirectoryError: the run has no student yet.
        ModelError: the file is none of kdray's.
    """
    check_temperature(temperature)
    _, path = find_student(where)
    card, student = read_own_card(path), load_student(path)

    def answer(images: np.ndarray) -> np.ndarray:
        log_probs = predict_log_probs(student, torch.from_numpy(images), threads=threads)
        found: np.ndarray = (log_probs / temperature).softmax(dim=1).numpy()
        return found

    served = FunctionTeacher(
        answer, identity=str(path), num_classes=card.num_classes, form=AnswerFormat(), metered=False
    )
    return served, card.image_shape, card.classes
