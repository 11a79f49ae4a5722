"""Algorithm 1 of Active Mixup as a state machine over the run directory.

One `step()` does the first phase whose artefact is missing: choose, query, train, evaluate, round after round; where
RAD's m is to be estimated, round 1 begins with that. All state is on disk, so a run that is killed and started again
goes on as if nothing had happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdray.artefacts import Candidates, Labelled, RunDirectory
from kdray.errors import BudgetExceeded, TeacherError
from kdray.estimate import Estimation, Sample, judge, sample
from kdray.files import read_json, write_bytes, write_json
from kdray.images import ImageSet
from kdray.observers import Observer, RoundMetrics
from kdray.pools.order import sample_without
from kdray.purchase import Bought, Terms, buy
from kdray.search import Reply, Request, Searcher
from kdray.seeds import numpy_generator, torch_seed
from kdray.select import STRATEGIES, Estimate, Mistakes, Options, Task, select
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
        labelled: images with true labels, trained on in every round; or None.
        test: labelled test images, or None.
        pool: the candidates.
        schedule: queries of each round, round 0 first; without those for an estimate.
        strategy: name of the selection.
        options: of the selection.
        estimation: how RAD's m is found out; None where the options say it.
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
    labelled: ImageSet | None
    test: ImageSet | None
    pool: Any
    searcher: Searcher
    teachers: TeacherPool
    trainer: Trainer
    ledger: Any
    observer: Observer
    schedule: list[int]
    strategy: str
    options: Options
    estimation: Estimation | None
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
        self._gathered: tuple[int, list[Tensor]] = (0, self._given())  # of so many rounds: images and targets

    @property
    def last(self) -> int:
        """T, the number of the last round."""
        return len(self.parts.schedule) - 1

    def step(self) -> bool:
        """Do the next missing phase. False when there was none: the run is complete."""
        due = self.directory.next_phase(self.last, estimate=self.parts.estimation is not None)
        if due is None:
            return False
        number, phase = due
        self.parts.observer.phase(number, phase)
        work = {"choose": self._choose, "query": self._query, "train": self._train, "evaluate": self._evaluate}
        (work | {"estimate": self._estimate})[phase](number)
        return True

    def history(self) -> list[RoundMetrics]:
        """Metrics of all finished rounds."""
        paths = [self.directory.artefact(number, "evaluate") for number in range(self.last + 1)]
        return [RoundMetrics(**read_json(path)) for path in paths if path.exists()]

    def _labelled(self, number: int) -> list[Labelled]:
        """The labelled images of a round, those of its estimate first: as just bought, the first time, else from
        disk."""
        classes = self.parts.teachers.teacher.num_classes
        sampled = self.directory.has_sample(number)
        parts = [self.directory.read_labelled(number, classes, sample=True)] if sampled else []
        if number in self._bought:
            return [*parts, self._bought.pop(number)]
        labelled = self.directory.read_labelled(number, classes)
        self.directory.publish(number)
        return [*parts, labelled]

    # RAD's m

    def _estimate(self, number: int) -> None:
        """Ask about a uniform sample, and keep what the answers say of m."""
        parts, begin = self.parts, time.monotonic()
        drawn = sample(parts.pool, self._chosen(number), parts.estimation, parts.seed)
        bought = self._buy(drawn.images, number, "estimate")
        rows = bought.positions.numpy()
        estimate = judge(drawn, rows, bought.answers.labels.numpy(), parts.pool, self._said)
        parts.observer.note(
            f"m: the teacher errs on {estimate.share:.1%} ({estimate.low:.1%} to {estimate.high:.1%}) of the "
            f"candidates, from {estimate.answered:,} answers"
        )
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        if drawn.ids is not None and len(rows):
            labelled = self._kept(drawn, rows, bought)
            self.directory.write_labelled(number, labelled, parts.classes, sample=True)
        self.directory.add_phase(number, "estimate", facts)
        write_json(self.directory.artefact(number, "estimate"), estimate.to_json())

    def _said(self) -> np.ndarray:
        """The teacher's class for each of the user's images, int64 [N]; -1 where it gave none."""
        known = self.directory.read_labelled(0, self.parts.teachers.teacher.num_classes)
        said = np.full(len(self.parts.images), -1, dtype=np.int64)
        said[known.ids] = known.answers.labels.numpy()
        return said

    def _kept(self, drawn: Sample, rows: np.ndarray, bought: Bought) -> Labelled:
        """The answered part of a sample of the pool: it is paid for, so it is trained on."""
        return Labelled(
            images=drawn.images[bought.positions],
            answers=bought.answers,
            ids=drawn.ids[rows],
            source=(self.parts.pool.source,) * len(rows),
        )

    def _options(self) -> Options:
        """What to choose by; m as estimated, where it was."""
        options, path = self.parts.options, self.directory.artefact(1, "estimate")
        if self.parts.estimation is None:
            return options
        return replace(options, mistakes=Mistakes(share=Estimate(**read_json(path)).share))

    # The phases of every round

    def _taken(self, number: int) -> np.ndarray:
        """Candidate ids that have left the pool before a round, int64."""
        taken = self._chosen(number)
        if self.directory.has_sample(1):
            classes = self.parts.teachers.teacher.num_classes
            taken = np.concatenate([taken, self.directory.read_labelled(1, classes, sample=True).ids])
        return taken

    def _chosen(self, number: int) -> np.ndarray:
        """Candidate ids that were chosen in earlier rounds, int64. Those of the estimate are not among them: it draws
        the same again when it died half-way."""
        first = 0 if self.parts.pool.real else 1
        chosen = [self.directory.read_candidates(earlier).ids for earlier in range(first, number)]
        return np.concatenate([np.empty(0, np.int64), *chosen])

    def _choose(self, number: int) -> None:
        parts, begin = self.parts, time.monotonic()
        if number == 0:
            candidates = Candidates(ids=self._first(), scores=None, source="image", columns={})
        else:
            task = Task(
                pool=parts.pool,
                k=parts.schedule[number],
                taken=self._taken(number),
                generator=numpy_generator(parts.seed, "selection", number),
                ask=lambda request: self._search(number - 1, request),
                options=self._options(),
                known=self._known(),
            )
            chosen = select(parts.strategy, task)
            if chosen.search is not None:
                parts.observer.note(chosen.search.summary())
            candidates = Candidates(
                ids=chosen.ids,
                scores=chosen.scores,
                source=parts.pool.source,
                columns=parts.pool.describe(torch.from_numpy(chosen.ids)),
                search={} if chosen.search is None else chosen.search.facts(),
            )
        self.directory.add_phase(number, "choose", {"seconds": time.monotonic() - begin})
        self.directory.write_candidates(number, candidates)

    def _first(self) -> np.ndarray:
        """Image numbers asked about in round 0: all of them, or so many drawn at random."""
        parts, count = self.parts, self.parts.schedule[0]
        if count == len(parts.images):
            return np.arange(count)
        generator = numpy_generator(parts.seed, "selection", 0)
        return np.sort(sample_without(len(parts.images), count, np.empty(0, np.int64), generator))

    def _known(self) -> Tensor | None:
        """Labelled images that are no candidates, for choices that compare candidates with them."""
        if not STRATEGIES[self.parts.strategy].features:
            return None
        parts = [self.parts.labelled.images] if self.parts.labelled is not None else []
        if not self.parts.pool.real:
            parts.append(self.parts.images.images[torch.from_numpy(self.directory.read_candidates(0).ids)])
        return torch.cat(parts) if parts else None

    def _search(self, student_round: int, request: Request) -> Reply:
        """Ask the student of an earlier round about the pool, always as it is on disk."""
        parts = self.parts
        model = load_student(self.directory.artefact(student_round, "train"))
        request = replace(request, seed=torch_seed(parts.seed, "search", student_round + 1))
        return parts.searcher.search(parts.pool, model, request, parts.observer.progress, parts.observer.note)

    def _query(self, number: int) -> None:
        parts, begin = self.parts, time.monotonic()
        candidates = self.directory.read_candidates(number)
        ids = torch.from_numpy(candidates.ids)
        if number or parts.pool.real:
            images = parts.pool.render(ids)
        else:  # all of them need no copy
            images = parts.images.images if len(ids) == len(parts.images) else parts.images.images[ids]
        bought = self._buy(images, number, "training")
        if len(bought.positions) == 0 and len(images):
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

    def _given(self) -> list[Tensor]:
        """Images and targets of those whose true labels the user has: hard ones, in every round (RAD, Algorithm 1)."""
        given = self.parts.labelled
        if given is None:
            return []
        return [given.images, F.one_hot(given.labels, self.parts.teachers.teacher.num_classes).to(torch.float32)]

    def _training_set(self, number: int) -> list[Tensor]:
        """Images and targets of all rounds up to this one; rounds are added as they come, and held once."""
        done, held = self._gathered
        for earlier in range(done, number + 1):
            for part in self._labelled(earlier):
                more = [part.images, training_targets(part.answers, self.parts.top)]
                if len(part):
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
        earlier = [self.directory.phases(earlier) for earlier in range(number + 1)]
        charged = sum(phases["query"]["charged"] for phases in earlier)
        estimated = sum(phases.get("estimate", {}).get("charged", 0) for phases in earlier)
        seconds["choose"] += facts.get("estimate", {}).get("seconds", 0.0)
        estimate = self.directory.artefact(number, "estimate")
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
            estimate_queries=estimated,
            estimate=read_json(estimate) if estimate.exists() else {},
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
