"""A round's student on the test images."""

from pathlib import Path

import torch

from kdray.errors import TeacherError
from kdray.images import ImageSet
from kdray.models.checkpoint import load_student
from kdray.models.predict import predict
from kdray.runs.asking import Asking, namer
from kdray.runs.context import RunContext
from kdray.runs.evaluation import Scores, rows_to_ask, score
from kdray.utils.stored import taken


def measured(run: RunContext, asking: Asking, student: Path, test: ImageSet, number: int) -> Scores:
    """The student on the test images, and beside the teacher on those that the teacher answers within the cap.

    Args:
        student: its file.
        number: of the round.
    """
    config = run.inputs.config
    rows = rows_to_ask(len(test), run.evaluation_queries, config.seed)
    asked = rows.numpy()
    if test.labels is None:  # the other images say nothing
        if len(rows) == 0:
            return Scores()
        test, rows = ImageSet(images=taken(test.images, rows)), torch.arange(len(rows))
    threads = config.resources.trainer.thread_count
    predictions = predict(load_student(student), test.images, threads=threads).argmax(dim=1)
    nothing = torch.empty(0, dtype=torch.int64)
    if len(rows) == 0:
        return score(predictions, test.labels, nothing, nothing)
    try:
        images = test.images if len(rows) == len(test) else taken(test.images, rows)
        bought = asking.buy(images, number, "evaluation", namer("image {} of test", asked))
    except TeacherError as error:
        run.observer.note(f"the teacher could not be measured: {error}")
        return score(predictions, test.labels, nothing, nothing)
    return score(predictions, test.labels, rows[bought.positions], bought.answers.labels)
