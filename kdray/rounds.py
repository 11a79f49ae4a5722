"""Algorithm 1 of Active Mixup as a state machine over the run directory.

One `step()` does the first phase whose artefact is missing: choose, query, train, evaluate, round after round. All
state is on disk, so a run that is killed and started again goes on as if nothing had happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdray.artefacts import Candidates, Labelled, RunDirectory
from kdray.errors import BudgetExceeded, TeacherError
from kdray.files import read_json, write_bytes, write_json
from kdray.images import ImageSet
from kdray.observers import Observer, RoundMetrics
from kdray.purchase import Bought, Terms, buy
from kdray.search import Found, Searcher, SearchRequest
from kdray.seeds import numpy_generator, torch_seed
from kdray.select import select
from kdray.students.evaluate import accuracy, predict
from kdray.students.export import load_student
from kdray.students.train import TrainResult
from kdray.teachers.answers import training_targets
from kdray.teachers.pool import TeacherPool


class Trainer(Protocol):
    """Makes a student; in this process or in a Ray actor."""

    def fit(
        self, images: Tensor, targets: Tensor, round: int, on_epoch: Callable[[int, float], None] | None = None
    ) -> tuple[bytes, TrainResult]:
        """A student trained from scratch, as the bytes of its file."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with. It does not know whether they run here or on Ray.

    Attributes:
        images: the user's images.
        test: labelled test images, or None.
        pool: the candidates.
        schedule: queries of each round, round 0 first.
        strategy: name of the selection.
        score: what makes a candidate informative, a key of `kdray.scores.INFORMATIVE`.
        seed: root of all randomness.
        classes: class names for the labelled set, or None.
        batch_size: images a teacher batch.
        epochs: of training, for those who watch.
        evaluation_queries: most teacher queries on test images.
        top: k of a teacher that shows the top k, or None.
        owner: names the run in the ledger.
        terms: on which the teacher may be asked.
        threads: CPU threads of evaluation.
    """

    images: ImageSet
    test: ImageSet | None
    pool: Any
    searcher: Searcher
    teachers: TeacherPool
    trainer: Trainer
    ledger: Any
    observer: Observer
    schedule: list[int]
    strategy: str
    score: str
    seed: int
    classes: tuple[str, ...] | None
    batch_size: int
    epochs: int
    evaluation_queries: int
    top: int | None
    owner: str
    terms: Terms
    threads: int


class Rounds:
    """The loop over one run directory."""

    def __init__(self, directory: RunDirectory, parts: Parts) -> None:
        self.directory, self.parts = directory, parts
        self._bought: dict[int, Labelled] = {}  # of rounds not yet gathered
        self._gathered: tuple[int, list[Tensor]] = (0, [])  # of so many rounds: images and targets

    @property
    def last(self) -> int:
        """T, the number of the last round."""
        return len(self.parts.schedule) - 1

    def step(self) -> bool:
        """Do the next missing phase. False when there was none: the run is complete."""
        due = self.directory.next_phase(self.last)
        if due is None:
            return False
        number, phase = due
        self.parts.observer.phase(number, phase)
        {"choose": self._choose, "query": self._query, "train": self._train, "evaluate": self._evaluate}[phase](number)
        return True

    def history(self) -> list[RoundMetrics]:
        """Metrics of all finished rounds."""
        paths = [self.directory.artefact(number, "evaluate") for number in range(self.last + 1)]
        return [RoundMetrics(**read_json(path)) for path in paths if path.exists()]

    def _labelled(self, number: int) -> Labelled:
        """The labelled images of a round: as just bought, the first time, else from disk."""
        if number in self._bought:
            return self._bought.pop(number)
        labelled = self.directory.read_labelled(number, self.parts.teachers.teacher.num_classes)
        self.directory.publish(number)
        return labelled

    def _choose(self, number: int) -> None:
        parts, begin = self.parts, time.monotonic()
        if number == 0:
            count = len(parts.images)
            candidates = Candidates(ids=np.arange(count), scores=None, source="image", columns={})
        else:
            taken = [self.directory.read_candidates(earlier).ids for earlier in range(1, number)]
            chosen = select(
                parts.strategy,
                parts.pool,
                parts.schedule[number],
                np.concatenate([np.empty(0, np.int64), *taken]),
                numpy_generator(parts.seed, "selection", number),
                lambda request: self._search(number - 1, request),
            )
            if chosen.search is not None:
                parts.observer.note(chosen.search.summary())
            candidates = Candidates(
                ids=chosen.ids,
                scores=chosen.scores,
                source="mixup",
                columns=parts.pool.describe(torch.from_numpy(chosen.ids)),
                search={} if chosen.search is None else chosen.search.facts(),
            )
        self.directory.add_phase(number, "choose", {"seconds": time.monotonic() - begin})
        self.directory.write_candidates(number, candidates)

    def _search(self, student_round: int, request: SearchRequest) -> Found:
        """Score the pool with the student of an earlier round, always as it is on disk."""
        parts = self.parts
        model = load_student(self.directory.artefact(student_round, "train"))
        request = replace(request, score=parts.score, seed=torch_seed(parts.seed, "search", student_round + 1))
        return parts.searcher.search(parts.pool, model, request, parts.observer.progress, parts.observer.note)

    def _query(self, number: int) -> None:
        parts, begin = self.parts, time.monotonic()
        candidates = self.directory.read_candidates(number)
        images = parts.images.images if number == 0 else parts.pool.render(torch.from_numpy(candidates.ids))
        bought = self._buy(images, number, "training")
        if len(bought.positions) == 0:
            raise BudgetExceeded(
                f"the budget is spent before round {number}: {self._lost():,} queries were charged and "
                "never answered; the run ends here"
            )
        if bought.short:
            parts.observer.note(
                f"the budget ran out: {bought.short:,} of {len(images):,} candidates of round {number} were not asked"
            )
        if bought.set_aside:
            reason = next(iter(bought.set_aside.values()))
            parts.observer.note(
                f"{len(bought.set_aside):,} of {len(images):,} images of round {number} were set aside: no answer to "
                f"them could be believed (such as: {reason})"
            )
        rows = bought.positions.numpy()
        if len(rows) < len(images):  # positions ascend; a copy of all would double what is held
            images = images[bought.positions]
        labelled = Labelled(
            images=images,
            answers=bought.answers,
            ids=candidates.ids[rows],
            source=(candidates.source,) * len(rows),
        )
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        facts |= {"short": bought.short, "set_aside": len(bought.set_aside)}
        self.directory.add_phase(number, "query", facts)
        self.directory.write_labelled(number, labelled, parts.classes)
        self._bought[number] = labelled

    def _buy(self, images: Tensor, number: int, purpose: str) -> Bought:
        parts = self.parts
        return buy(
            images,
            pool=parts.teachers,
            ledger=parts.ledger,
            batch_size=parts.batch_size,
            purpose=purpose,
            round=number,
            owner=parts.owner,
            terms=parts.terms,
            on_progress=lambda done, total: self._tell(done, total, purpose),
            on_note=parts.observer.note,
        )

    def _tell(self, done: int, total: int, purpose: str) -> None:
        spent = self.parts.ledger.spent("training", self.parts.owner) if purpose == "training" else None
        self.parts.observer.progress(done, total, spent=spent)

    def _lost(self) -> int:
        """Training queries charged for which there is no answer."""
        ledger, owner = self.parts.ledger, self.parts.owner
        return ledger.uncertain("training", owner) + ledger.rejected("training", owner)

    def _train(self, number: int) -> None:
        begin = time.monotonic()
        images, targets = self._training_set(number)
        data, result = self.parts.trainer.fit(
            images, targets, number, lambda done, loss: self.parts.observer.progress(done, self.parts.epochs)
        )
        facts = {"seconds": time.monotonic() - begin, "losses": result.losses, "images": len(images)}
        facts |= {"holdout_losses": result.holdout_losses, "best_epoch": result.best_epoch}
        self.directory.add_phase(number, "train", facts)
        write_bytes(self.directory.artefact(number, "train"), data)

    def _training_set(self, number: int) -> list[Tensor]:
        """Images and targets of all rounds up to this one; rounds are added as they come, and held once."""
        done, held = self._gathered
        for earlier in range(done, number + 1):
            part = self._labelled(earlier)
            more = [part.images, training_targets(part.answers, self.parts.top)]
            held = [torch.cat(both) for both in zip(held, more, strict=True)] if held else more
        self._gathered = (number + 1, held)
        return held

    def _evaluate(self, number: int) -> None:
        parts, begin = self.parts, time.monotonic()
        path = self.directory.artefact(number, "train")
        scores = self._measure(path, number) if parts.test is not None else {}
        write_bytes(self.directory.student, path.read_bytes())
        facts = self.directory.phases(number)
        seconds = {phase: facts[phase]["seconds"] for phase in ("choose", "query", "train")}
        charged = sum(self.directory.phases(earlier)["query"]["charged"] for earlier in range(number + 1))
        searched = self.directory.read_candidates(number).search
        metrics = RoundMetrics(
            round=number,
            images=facts["train"]["images"],
            queries=charged,
            bought=facts["query"]["charged"],
            reused=facts["query"]["reused"],
            short=facts["query"]["short"],
            set_aside=facts["query"].get("set_aside", 0),
            evaluated=searched.get("passes", 0),
            search=searched,
            student_accuracy=scores.get("student"),
            teacher_accuracy=scores.get("teacher"),
            success_rate=scores.get("success"),
            agreement=scores.get("agreement"),
            evaluation_queries=parts.ledger.spent("evaluation", parts.owner),
            loss=facts["train"]["losses"][-1],
            seconds=seconds | {"evaluate": time.monotonic() - begin},
        )
        write_json(self.directory.artefact(number, "evaluate"), metrics.to_json())
        parts.observer.round_done(metrics)

    def _measure(self, path, number: int) -> dict[str, float]:
        """Accuracy on the test set and, on those images the teacher may be asked about, what it takes to compare."""
        parts = self.parts
        predictions = predict(load_student(path), parts.test.images, threads=parts.threads).argmax(dim=1)
        scores = {"student": accuracy(predictions, parts.test.labels)}
        allowed = min(parts.evaluation_queries, len(parts.test))
        if allowed == 0:
            return scores
        asked = parts.test.images[:allowed]
        try:
            bought = self._buy(asked, number, "evaluation")
        except TeacherError as error:
            parts.observer.note(f"the teacher could not be measured: {error}")
            return scores
        rows = bought.positions
        if len(rows) == 0:
            return scores
        labels = parts.test.labels[rows]
        scores["teacher"] = accuracy(bought.answers.labels, labels)
        scores["agreement"] = accuracy(predictions[rows], bought.answers.labels)
        if scores["teacher"] > 0:
            scores["success"] = accuracy(predictions[rows], labels) / scores["teacher"]
        return scores
