"""Algorithm 1 of Active Mixup as a state machine over the run directory.

One `step()` does the first phase whose artefact is missing: choose, query, train, evaluate, round after round. Where
RAD's m is to be estimated, round 1 begins with the estimate; where several kinds of candidates are tried, round 2 with
their comparison; where candidates follow from the student, each round makes them first. The last round may ask about
augmented copies. All state is on disk, so a run that is killed and started again continues to the same bits.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdray.errors import BudgetLost
from kdray.models.checkpoint import load_student
from kdray.observers import RoundMetrics
from kdray.pools.base import Pool, rendered
from kdray.pools.permutation import sample_without
from kdray.runs.asked import Asked, bought_before
from kdray.runs.asking import Asking
from kdray.runs.confirmed import confirmed, confirmed_note
from kdray.runs.context import RunContext
from kdray.runs.copies import Copies
from kdray.runs.directory import RunDirectory
from kdray.runs.estimating import ESTIMATE_ROUND, Estimating
from kdray.runs.evaluation import Scores
from kdray.runs.kinds import TRIAL, Kinds
from kdray.runs.measuring import measured
from kdray.runs.metrics import round_metrics
from kdray.runs.one_class import check_answers, stands_for_all
from kdray.runs.remade import Remade
from kdray.runs.tables import Candidates, Labelled
from kdray.runs.training_set import of_one_round, with_bought, with_true_labels
from kdray.search.requests import R, Request
from kdray.select.balance import imbalance, relative_entropy
from kdray.select.base import Task, select
from kdray.training.fitting import untrained
from kdray.training.loop import TrainResult
from kdray.utils.files import read_json, write_bytes, write_json
from kdray.utils.seeds import numpy_generator, torch_seed
from kdray.utils.stored import joined, taken


class Rounds:
    """The loop over one run directory."""

    def __init__(self, directory: RunDirectory, run: RunContext) -> None:
        self.directory, self._run, self._inputs, self._config = directory, run, run.inputs, run.inputs.config
        self._kinds, self._remade = Kinds(directory, run.inputs.pool), Remade(directory, run.inputs.pool)
        self._asking = Asking(run)
        self._estimating = Estimating(directory, run, self._asking)
        self._bought: dict[int, Labelled] = {}  # of rounds not yet gathered
        given = with_true_labels(run.inputs.labelled, self._num_classes)  # in every round (RAD, Algorithm 1)
        self._gathered: tuple[int, list[Tensor]] = (0, given)  # of so many rounds: images and targets

    @property
    def _num_classes(self) -> int:
        return self._run.teachers.teacher.num_classes

    @property
    def _given(self) -> int:
        """Images with true labels, in front of those that were bought."""
        return 0 if self._inputs.labelled is None else len(self._inputs.labelled)

    @property
    def last(self) -> int:
        """T, the number of the last round."""
        return len(self._inputs.schedule) - 1

    def step(self) -> bool:
        """Do the next missing phase.

        Returns:
            False when no phase was missing: the run is complete.
        """
        due = self.directory.next_phase(self.last, self._before())
        if due is None:
            return False
        number, phase = due
        self._run.observer.phase(number, phase)
        work = {"choose": self._choose, "query": self._query, "train": self._train, "evaluate": self._evaluate}
        (work | {"estimate": self._estimate, "compare": self._compare, "make": self._make})[phase](number)
        return True

    def _before(self) -> dict[int, str]:
        """The phase with which some rounds begin."""
        if self._kinds.several:
            return {TRIAL + 1: "compare"}
        if self._remade:
            return {number: "make" for number in range(1, self.last + 1) if not self._asks_copies(number)}
        return {} if self._inputs.estimation is None else {ESTIMATE_ROUND: "estimate"}

    def _estimate(self, number: int) -> None:
        """Estimate RAD's m, and record it."""
        self._estimating.estimate(self._chosen(number))

    def _compare(self, number: int) -> None:
        """Find out which kind of candidates teaches most, and record it."""
        begin, classes = time.monotonic(), self._num_classes
        choice = self._kinds.compare(
            self._run.trainer,
            given=with_true_labels(self._inputs.labelled, classes),
            num_classes=classes,
            top=self._config.teacher.form.top,
            seed=self._config.seed,
            on_progress=self._run.observer.progress,
        )
        note = choice.note("pool")
        self._run.observer.note(note)
        facts = {"seconds": time.monotonic() - begin, "choice": choice.facts(), "note": note}
        self.directory.add_phase(number, "compare", facts)
        write_json(self.directory.artefact(number, "compare"), choice.facts())

    def _make(self, number: int) -> None:
        """Make the candidates of a round from the student of the round before."""
        self._remade.make(
            number,
            self._training_set(number - 1),
            trainer=self._run.trainer,
            observer=self._run.observer,
            count=self._inputs.new(number),
            teacher=self._inputs.white_box,
        )

    def _pool(self, number: int) -> Pool:
        """What a round chooses from."""
        return self._remade.of_round(number) if self._remade else self._kinds.pool

    def note(self, text: str) -> None:
        """Tell the observers of the run."""
        self._run.observer.note(text)

    def history(self) -> list[RoundMetrics]:
        """Metrics of all finished rounds."""
        paths = [self.directory.artefact(number, "evaluate") for number in range(self.last + 1)]
        return [RoundMetrics(**read_json(path)) for path in paths if path.exists()]

    def _labelled(self, number: int) -> list[Labelled]:
        """The labelled images of a round, those of its estimate first; from memory right after they were bought, later
        from disk."""
        classes = self._num_classes
        sampled = self.directory.has_sample(number)
        parts = [self.directory.read_labelled(number, classes, sample=True)] if sampled else []
        if number in self._bought:
            return [*parts, self._bought.pop(number)]
        labelled = self.directory.read_labelled(number, classes)
        self.directory.publish(number)
        return [*parts, labelled]

    def _taken(self, number: int) -> np.ndarray:
        """Candidate ids that have left the pool before a round, int64."""
        if self._remade:
            return np.empty(0, np.int64)
        return np.concatenate([self._chosen(number), self._estimating.sampled()])

    def _chosen(self, number: int) -> np.ndarray:
        """Candidate ids that were chosen in earlier rounds, int64, without those of the estimate: an estimate that is
        resumed must draw the same candidates again."""
        first = 0 if self._inputs.pool.real else 1
        chosen = [self.directory.read_candidates(earlier).ids for earlier in range(first, number)]
        return np.concatenate([np.empty(0, np.int64), *chosen])

    def _choose(self, number: int) -> None:
        begin = time.monotonic()
        if number == 0:
            candidates = Candidates(ids=self._first(), scores=None, source="image", columns={})
        elif self._asks_copies(number):
            generator = numpy_generator(self._config.seed, "selection", number)
            copies = self._copies(number)
            ids = copies.drawn(self._inputs.schedule[number], generator)
            candidates = Candidates(ids=ids, scores=None, source=copies.source, columns=copies.describe(ids))
        elif self._kinds.on_trial(number):
            generator = numpy_generator(self._config.seed, "selection", number)
            candidates = self._kinds.drawn(self._inputs.schedule[number], generator)
        elif self._config.pool.exact:
            ids, pool = np.arange(self._inputs.new(number)), self._pool(number)
            columns = pool.describe(torch.from_numpy(ids))
            candidates = Candidates(ids=ids, scores=None, source=pool.source, columns=columns)
        else:
            pool = self._pool(number)
            task = Task(
                pool=pool,
                k=self._wanted(number, pool),
                taken=self._kinds.inner(self._taken(number)),
                generator=numpy_generator(self._config.seed, "selection", number),
                ask=partial(self._ask, number - 1),
                known=self._known(number),
                mistakes=self._estimating.mistakes(),
                asked=self._asked(),
            )
            chosen = select(self._config.select, task)
            if chosen.search is not None:
                self._run.observer.note(chosen.search.summary())
            candidates = Candidates(
                ids=self._kinds.outer(chosen.ids),
                scores=chosen.scores,
                source=self._kinds.source,
                columns=pool.describe(torch.from_numpy(chosen.ids)),
                search={} if chosen.search is None else chosen.search.facts(),
            )
        # It says how many rounds there are, see `RunDirectory.is_complete`.
        schedule = {"schedule": self._inputs.schedule} if number == 0 else {}
        self.directory.add_phase(number, "choose", {"seconds": time.monotonic() - begin, **schedule})
        self.directory.write_candidates(number, candidates)

    def _wanted(self, number: int, pool: Pool) -> int:
        """Candidates to choose: a pool that was made for the round may have fewer than were planned."""
        planned = self._inputs.new(number)
        return min(planned, self._config.select.capacity(pool)) if self._remade else planned

    def _first(self) -> np.ndarray:
        """Numbers of the images asked about in round 0, int64: all of them, or a random sample."""
        count = self._inputs.schedule[0]
        if count == len(self._inputs.images):
            return np.arange(count)
        generator = numpy_generator(self._config.seed, "selection", 0)
        return np.sort(sample_without(len(self._inputs.images), count, np.empty(0, np.int64), generator))

    def _known(self, number: int) -> Tensor | None:
        """Labelled images that are no candidates, for strategies that compare features."""
        if not self._config.select.features:
            return None
        if self._remade:
            return next(iter(self._training_set(number - 1)), None)
        parts = [self._inputs.labelled.images] if self._inputs.labelled is not None else []
        if not self._inputs.pool.real:
            parts.append(taken(self._inputs.images.images, torch.from_numpy(self.directory.read_candidates(0).ids)))
        if self._kinds.several:
            parts.append(self._kinds.others(self.directory.read_labelled(TRIAL, self._num_classes)))
        return joined(parts) if parts else None

    def _asked(self) -> np.ndarray:
        """Numbers of the images of the pool that were asked about as such, int64."""
        return np.empty(0, np.int64) if self._inputs.pool.real else self.directory.read_candidates(0).ids

    def _ask(self, student_round: int, request: Request[R]) -> R:
        """Ask the student of an earlier round about the pool, always as it is on disk."""
        return self._run.searcher.search(
            self._pool(student_round + 1),
            load_student(self.directory.artefact(student_round, "train")),
            request,
            seed=torch_seed(self._config.seed, "search", student_round + 1),
            on_progress=self._run.observer.progress,
            on_note=self._run.observer.note,
        )

    def _query(self, number: int) -> None:
        begin = time.monotonic()
        candidates = self.directory.read_candidates(number)
        ids = torch.from_numpy(candidates.ids)
        if self._asks_copies(number):
            images = self._copies(number).render(candidates.ids)
        elif number or self._inputs.pool.real:
            images = rendered(self._pool(number) if self._remade else self._inputs.pool, ids)
        else:  # the whole set needs no copy
            own = self._inputs.images.images
            images = own if len(ids) == len(own) else taken(own, ids)
        where = "image {} of images" if self._own(number) else f"candidate {{}} of round {number}"
        before = bought_before(self.directory, number, self._num_classes) if self._inputs.again[number] else None
        asked = Asked.of(images, candidates, where, before)
        random = stands_for_all(self._inputs, number, self._answers(number - 1))
        bought = self._asking.buy(asked.images, number, "training", asked.name, asked.again, at_random=random)
        if len(bought.positions) == 0 and bought.short:
            raise BudgetLost(
                f"the budget is spent before round {number}: {self._asking.lost():,} queries were charged and never "
                "answered"
            )
        for note in asked.notes(bought, number):
            self._run.observer.note(note)
        earlier = self._answered(number)
        repeated = self._asking.repeated(asked.images, bought, earlier, number=number, again=asked.again)
        labelled = asked.answered(bought)
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        facts |= {"repeated": repeated, "short": bought.short, "set_aside": len(bought.set_aside)}
        new = int((bought.positions < len(candidates.ids)).sum())
        facts["again"] = len(labelled) - new
        if boundaries := confirmed(candidates.columns, bought.positions[:new].numpy(), bought.answers.labels[:new]):
            self._run.observer.note(confirmed_note(boundaries))
        self.directory.add_phase(number, "query", {**facts, "boundaries": boundaries})
        top = self._inputs.config.teacher.form.top
        self.directory.write_labelled(number, labelled, self._inputs.classes, top=top)
        self._bought[number] = labelled

    def _answered(self, number: int) -> Iterator[Tensor]:
        """Images that the run has answers to before a round asks, those of its estimate too."""
        for earlier in range(number + 1):
            if self.directory.has_sample(earlier):
                yield self.directory.read_labelled(earlier, self._num_classes, sample=True).images
            if earlier < number:
                count = self.directory.count_first(earlier)
                yield self.directory.read_labelled(earlier, self._num_classes, count).images

    def _own(self, number: int) -> bool:
        """Whether the candidates of a round are the user's images, and their ids the rows of `images`."""
        return number == 0 or (self._inputs.pool.real and not self._asks_copies(number))

    def _asks_copies(self, number: int) -> bool:
        """Whether a round asks about augmented copies of what was bought before."""
        return number == self.last and self._inputs.copies > 0

    def _copies(self, number: int) -> Copies:
        """Copies of what was bought before a round."""
        return Copies(self._training_set(number - 1)[0][self._given :], self._config.student.augment, self._config.seed)

    def _train(self, number: int) -> None:
        begin = time.monotonic()
        if not (learnt := self._learnt(number)) or not len(learnt[0]):  # the newest round alone may have no answer
            fresh, result = untrained(self._inputs.spec)
            kept = self.directory.artefact(number - 1, "train").read_bytes() if learnt else fresh
            self._keep_student(number, begin, (kept, result), {"images": 0})
            return
        images, targets = learnt
        answers = self._answers(number)  # all, whatever the student is trained on
        labels = answers.argmax(dim=1)
        check_answers(self._inputs, number, answers)
        if told := imbalance(labels, targets.shape[1], can_balance=self._config.can_balance):
            self._run.observer.note(told)
        unfinished = self.directory.training(number)
        self._run.trainer.take_candidates(self._pool(number))
        if number and self._config.student.start == "last":
            self._run.trainer.start_from(self.directory.artefact(number - 1, "train").read_bytes())
        student = self._run.trainer.fit(
            images,
            targets,
            number,
            lambda done, of, loss: self._run.observer.progress(done, of),
            final=number == self.last,
            last=unfinished.read_bytes() if unfinished.exists() else None,
            on_state=lambda state: write_bytes(unfinished, state),
        )
        entropy = relative_entropy(labels, targets.shape[1]) if len(labels) else None
        self._keep_student(number, begin, student, {"images": len(images), "relative_entropy": entropy})
        unfinished.unlink(missing_ok=True)

    def _keep_student(
        self, number: int, begin: float, student: tuple[bytes, TrainResult], facts: dict[str, Any]
    ) -> None:
        data, result = student
        for note in result.notes():
            self._run.observer.note(note)
        facts |= {"seconds": time.monotonic() - begin, "losses": result.losses}
        facts["training"] = {
            "steps": result.steps,
            "diverged": result.diverged,
            "choices": {name: choice.facts() for name, choice in result.choices.items()},
            "notes": result.notes(),
        }
        facts |= {"holdout_losses": result.holdout_losses, "best_epoch": result.best_epoch}
        self.directory.add_phase(number, "train", facts)
        write_bytes(self.directory.artefact(number, "train"), data)

    def _learnt(self, number: int) -> list[Tensor]:
        """Images and targets that the student of a round is trained on; nothing where there are none."""
        if self._config.student.replay == "all" or self._config.pool.asks_again:
            return self._training_set(number)
        before = next(map(len, self._training_set(number - 1)), 0)
        return of_one_round(self._training_set(number), self._given, before)

    def _answers(self, number: int) -> Tensor:
        """All answers up to a round, float32 [N, K]."""
        held = self._training_set(number)
        return held[1][self._given :] if held else torch.empty(0, self._num_classes)

    def _training_set(self, number: int) -> list[Tensor]:
        """Images and targets of all rounds up to this one, each round added once, so that all are held once. Of rounds
        that ask again the newest has all images."""
        done, held = self._gathered
        for earlier in range(done, number + 1):
            if self._config.pool.asks_again:
                held = with_true_labels(self._inputs.labelled, self._num_classes)
            for part in self._labelled(earlier):
                held = with_bought(held, part, self._config.teacher.form.top)
        self._gathered = (number + 1, held)
        return held

    def _evaluate(self, number: int) -> None:
        begin = time.monotonic()
        path = self.directory.artefact(number, "train")
        test = self._inputs.test
        scores = Scores() if test is None else measured(self._run, self._asking, path, test, number)
        write_bytes(self.directory.student, path.read_bytes())
        metrics = round_metrics(
            self.directory,
            number,
            scores,
            evaluation_queries=self._run.ledger.spent("evaluation", self._run.owner),
            evaluate_s=time.monotonic() - begin,
        )
        write_json(self.directory.artefact(number, "evaluate"), metrics.to_json())
        self._run.observer.round_done(metrics)
