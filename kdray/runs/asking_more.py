"""More of a run's teacher than the run asked: answers to images that it is to be measured on."""

import os
from typing import Any

import torch
from torch import Tensor

from kdray.config.root import Config
from kdray.errors import TeacherError
from kdray.ledger.records import AFTER
from kdray.ledger.store import Ledger
from kdray.models.checkpoint import ModelCard
from kdray.observers import Observer
from kdray.runs.answered import Known, answers_of_run
from kdray.runs.asking import namer
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import asking_order
from kdray.runs.opening import another_ledger
from kdray.runs.policy import PurchasePolicy
from kdray.runs.purchase import buy
from kdray.teachers.pool import make_pool
from kdray.utils.stored import taken


def ask_more(
    run: RunDirectory, config: Config, images: Tensor, known: Known, most: int, card: ModelCard, observer: Observer
) -> Known:
    """Ask the run's teacher about images that have no answer yet, in this process. The queries are on the run's
    receipt, as those of its evaluation, and the answers in its ledger.

    Args:
        images: uint8 [N, C, H, W], as the student sees them.
        known: those that have an answer.
        most: queries at most: a hard cap. The images are drawn at random, the same ones with the run's seed.
        card: of the run's student.

    Returns:
        All images that have an answer now.

    Raises:
        RunDirectoryError: another process works in the run's directory.
        LedgerError: the ledger is not there, or knows nothing of the run.
        TeacherError: it cannot be asked, is another than the run's, or fails.
    """
    section = config.teacher
    have = set(known.rows.tolist())
    order = asking_order(len(images), config.seed).tolist()
    rows = [row for row in order if row not in have][:most]
    if not rows:
        return known
    run.lock()
    try:
        teacher = section.build(
            section.input.shape(card.image_shape), folder=os.getcwd(), secrets=section.read_secrets()
        )
        section.check(teacher)
        owner, path = run.owner(), run.ledger_of(config.ledger)
        if not path.exists():
            raise another_ledger(path)  # before a new one is made there
        ledger: Any = Ledger(path)
        try:
            if not ledger.knows(owner):
                raise another_ledger(path)
            if (mine := ledger.teachers(owner)) and mine != [teacher.identity]:
                raise TeacherError(
                    f"{run.path} has bought its answers from {mine[0]}, and the teacher is now {teacher.identity}: "
                    "bring the old one back, or leave out --ask"
                )
            # The directory's lock is ours, so what its owner has reserved was left by a dead process
            uncertain, _ = ledger.recover(owner)
            if uncertain:
                observer.note(f"{uncertain:,} queries were on their way when kdray died: they count as charged")
            ledger.open_account(owner, {"evaluation": ledger.spent("evaluation", owner) + most})
            asked = torch.tensor(sorted(rows), dtype=torch.int64)
            pool = make_pool(teacher, section.limits.in_flight)
            try:
                buy(
                    taken(images, asked),
                    teachers=pool,
                    ledger=ledger,
                    batch_size=section.batch_size,
                    purpose="evaluation",
                    round=AFTER,
                    owner=owner,
                    policy=PurchasePolicy.of(section, metered=teacher.metered),
                    on_progress=observer.progress,
                    on_note=observer.note,
                    name=namer("image {} of test", asked.numpy()),
                )
            finally:
                pool.close()
        finally:
            ledger.close()
    finally:
        run.unlock()
    return answers_of_run(run, config, images, card.num_classes, observer)
