"""Algorithm 1 of Active Mixup as a state machine over the run directory.

One `step()` does the first phase whose artefact is missing: choose, query, train, evaluate, round after round. Where
RAD's m is to be estimated, round 1 begins with the estimate. All state is on disk, so a run that is killed and started
again continues to the same bits.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdray.errors import BudgetExceeded, TeacherError
from kdray.images import ImageSet
from kdray.models.checkpoint import load_student
from kdray.models.predict import predict
from kdray.observers import RoundMetrics
from kdray.pools.base import rendered
from kdray.pools.permutation import sample_without
from kdray.runs.context import RunContext
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import Scores, rows_to_ask, score
from kdray.runs.kinds import TRIAL, Kinds
from kdray.runs.metrics import round_metrics
from kdray.runs.policy import Bought
from kdray.runs.purchase import buy
from kdray.runs.tables import Candidates, Labelled
from kdray.runs.training_set import with_bought, with_true_labels
from kdray.search.requests import R, Request
from kdray.select.base import Task, select
from kdray.select.rad.estimate import draw_images, judge
from kdray.select.rad.mistakes import Estimate, Mistakes
from kdray.utils.files import read_json, write_bytes, write_json
from kdray.utils.seeds import numpy_generator, torch_seed
from kdray.utils.stored import joined, taken


class Rounds:
    """The loop over one run directory."""

    def __init__(self, directory: RunDirectory, run: RunContext) -> None:
        self.directory, self._run, self._inputs, self._config = directory, run, run.inputs, run.inputs.config
        self._kinds = Kinds(directory, run.inputs.pool)
        self._bought: dict[int, Labelled] = {}  # of rounds not yet gathered
        given = with_true_labels(run.inputs.labelled, self._num_classes)  # in every round (RAD, Algorithm 1)
        self._gathered: tuple[int, list[Tensor]] = (0, given)  # of so many rounds: images and targets

    @property
    def _num_classes(self) -> int:
        return self._run.teachers.teacher.num_classes

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
        (work | {"estimate": self._estimate, "compare": self._compare})[phase](number)
        return True

    def _before(self) -> dict[int, str]:
        """The phase with which some rounds begin."""
        if self._kinds.several:
            return {TRIAL + 1: "compare"}
        return {} if self._inputs.estimation is None else {1: "estimate"}

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

    # RAD's m

    def _estimate(self, number: int) -> None:
        """Ask about a uniform sample, and record the estimate of m."""
        begin = time.monotonic()
        assert self._inputs.estimation is not None, "there is no such phase without one"
        drawn = draw_images(self._inputs.pool, self._chosen(number), self._inputs.estimation, self._config.seed)
        where = "image {} of the sample for m" if drawn.ids is None else f"candidate {{}} of {self._inputs.pool.source}"
        bought = self._buy(drawn.images, number, "estimate", _namer(where, drawn.ids))
        rows = bought.positions.numpy()
        estimate = judge(drawn, rows, bought.answers.labels.numpy(), self._inputs.pool, self._source_classes)
        self._run.observer.note(
            f"m: the teacher errs on {estimate.share:.1%} ({estimate.low:.1%} to {estimate.high:.1%}) of the "
            f"candidates, from {estimate.answered:,} answers"
        )
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        if drawn.ids is not None and len(rows):
            labelled = self._kept(drawn.images, drawn.ids, bought)
            self.directory.write_labelled(number, labelled, self._inputs.classes, sample=True)
        self.directory.add_phase(number, "estimate", facts)
        write_json(self.directory.artefact(number, "estimate"), estimate.to_json())

    def _source_classes(self) -> np.ndarray:
        """The teacher's class for each of the user's images, int64 [N]; -1 where it gave none."""
        known = self.directory.read_labelled(0, self._num_classes)
        classes = np.full(len(self._inputs.images), -1, dtype=np.int64)
        classes[known.ids] = known.answers.labels.numpy()
        return classes

    def _kept(self, images: Tensor, ids: np.ndarray, bought: Bought) -> Labelled:
        """The answered candidates of an estimate. They are paid for, so the student is trained on them."""
        return Labelled(
            images=images[bought.positions],
            answers=bought.answers,
            ids=ids[bought.positions.numpy()],
            source=(self._inputs.pool.source,) * len(bought.positions),
        )

    def _mistakes(self) -> Mistakes | None:
        """RAD's m as it was estimated; None where it was not."""
        if self._inputs.estimation is None:
            return None
        return Mistakes(share=Estimate(**read_json(self.directory.artefact(1, "estimate"))).share)

    # The phases of every round

    def _taken(self, number: int) -> np.ndarray:
        """Candidate ids that have left the pool before a round, int64."""
        taken = self._chosen(number)
        if self.directory.has_sample(1):
            classes = self._num_classes
            taken = np.concatenate([taken, self.directory.read_labelled(1, classes, sample=True).ids])
        return taken

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
        elif self._kinds.on_trial(number):
            generator = numpy_generator(self._config.seed, "selection", number)
            candidates = self._kinds.drawn(self._inputs.schedule[number], generator)
        else:
            pool = self._kinds.pool
            task = Task(
                pool=pool,
                k=self._inputs.schedule[number],
                taken=self._kinds.inner(self._taken(number)),
                generator=numpy_generator(self._config.seed, "selection", number),
                ask=partial(self._ask, number - 1),
                known=self._known(),
                mistakes=self._mistakes(),
            )
            chosen = select(self._config.select, task)
            if chosen.search is not None:
                self._run.observer.note(chosen.search.summary())
            candidates = Candidates(
                ids=self._kinds.outer(chosen.ids),
                scores=chosen.scores,
                source=pool.source,
                columns=pool.describe(torch.from_numpy(chosen.ids)),
                search={} if chosen.search is None else chosen.search.facts(),
            )
        # It says how many rounds there are, see `RunDirectory.is_complete`.
        schedule = {"schedule": self._inputs.schedule} if number == 0 else {}
        self.directory.add_phase(number, "choose", {"seconds": time.monotonic() - begin, **schedule})
        self.directory.write_candidates(number, candidates)

    def _first(self) -> np.ndarray:
        """Numbers of the images asked about in round 0, int64: all of them, or a random sample."""
        count = self._inputs.schedule[0]
        if count == len(self._inputs.images):
            return np.arange(count)
        generator = numpy_generator(self._config.seed, "selection", 0)
        return np.sort(sample_without(len(self._inputs.images), count, np.empty(0, np.int64), generator))

    def _known(self) -> Tensor | None:
        """Labelled images that are no candidates, for strategies that compare features."""
        if not self._config.select.features:
            return None
        parts = [self._inputs.labelled.images] if self._inputs.labelled is not None else []
        if not self._inputs.pool.real:
            parts.append(taken(self._inputs.images.images, torch.from_numpy(self.directory.read_candidates(0).ids)))
        return joined(parts) if parts else None

    def _ask(self, student_round: int, request: Request[R]) -> R:
        """Ask the student of an earlier round about the pool, always as it is on disk."""
        return self._run.searcher.search(
            self._kinds.pool,
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
        if number or self._inputs.pool.real:
            images = rendered(self._inputs.pool, ids)
        else:  # the whole set needs no copy
            own = self._inputs.images.images
            images = own if len(ids) == len(own) else taken(own, ids)
        where = "image {} of images" if self._own(number) else f"candidate {{}} of round {number}"
        name = _namer(where, candidates.ids)
        bought = self._buy(images, number, "training", name)
        if len(bought.positions) == 0 and len(images):
            raise BudgetExceeded(
                f"the budget is spent before round {number}: {self._lost():,} queries were charged and never answered"
            )
        if bought.short:
            self._run.observer.note(
                f"the budget ran out: {bought.short:,} of {len(images):,} candidates of round {number} were not asked"
            )
        if bought.set_aside:
            position, reason = next(iter(bought.set_aside.items()))
            self._run.observer.note(
                f"{len(bought.set_aside):,} of {len(images):,} images of round {number} were set aside: they have no "
                f"valid answer (for example {name(position)}: {reason})"
            )
        rows = bought.positions.numpy()
        if len(rows) < len(images):  # positions ascend; a copy of all would double what is held
            images = taken(images, bought.positions)
        sources = [candidates.source] * len(candidates.ids)
        if self._kinds.on_trial(number):
            sources = candidates.columns["kind"]
        labelled = Labelled(
            images=images,
            answers=bought.answers,
            ids=candidates.ids[rows],
            source=tuple(np.array(sources)[rows].tolist()),
        )
        facts = {"seconds": time.monotonic() - begin, "charged": bought.charged, "reused": bought.reused}
        facts |= {"short": bought.short, "set_aside": len(bought.set_aside)}
        self.directory.add_phase(number, "query", facts)
        self.directory.write_labelled(number, labelled, self._inputs.classes)
        self._bought[number] = labelled

    def _own(self, number: int) -> bool:
        """Whether the candidates of a round are the user's images, and their ids the rows of `images`."""
        return number == 0 or self._inputs.pool.real

    def _buy(self, images: Tensor, number: int, purpose: str, name: Callable[[int], str]) -> Bought:
        bought = buy(
            images,
            teachers=self._run.teachers,
            ledger=self._run.ledger,
            batch_size=self._config.teacher.batch_size,
            purpose=purpose,
            round=number,
            owner=self._run.owner,
            policy=self._run.policy,
            on_progress=lambda done, total: self._tell(done, total, purpose),
            on_note=self._run.observer.note,
            name=name,
        )
        if self._run.whole_rounds and bought.short and purpose != "evaluation" and self._own_queries_left(purpose):
            raise BudgetExceeded(
                f"the budget of all runs that share the ledger is spent: {bought.short:,} of {len(images):,} images of "
                f"round {number} were not asked; raise it to go on"
            )
        return bought

    def _own_queries_left(self, purpose: str) -> bool:
        """Whether the run could ask for more, were it not for the cap of all who share the ledger."""
        estimate = self._inputs.estimation.queries if self._inputs.estimation else 0
        cap = estimate if purpose == "estimate" else self._config.budget.queries - estimate
        return bool(self._run.ledger.spent(purpose, self._run.owner) < cap)

    def _tell(self, done: int, total: int, purpose: str) -> None:
        spent = self._run.ledger.spent("training", self._run.owner) if purpose == "training" else None
        self._run.observer.progress(done, total, spent=spent)

    def _lost(self) -> int:
        """Training queries that were charged and have no valid answer."""
        ledger, owner = self._run.ledger, self._run.owner
        return int(ledger.uncertain("training", owner) + ledger.rejected("training", owner))

    def _train(self, number: int) -> None:
        begin = time.monotonic()
        images, targets = self._training_set(number)
        unfinished = self.directory.training(number)
        self._run.trainer.take_candidates(self._kinds.pool)
        data, result = self._run.trainer.fit(
            images,
            targets,
            number,
            lambda done, of, loss: self._run.observer.progress(done, of),
            final=number == self.last,
            last=unfinished.read_bytes() if unfinished.exists() else None,
            on_state=lambda state: write_bytes(unfinished, state),
        )
        for note in result.notes():
            self._run.observer.note(note)
        facts = {"seconds": time.monotonic() - begin, "losses": result.losses, "images": len(images)}
        facts["training"] = {
            "steps": result.steps,
            "diverged": result.diverged,
            "choices": {name: choice.facts() for name, choice in result.choices.items()},
            "notes": result.notes(),
        }
        facts |= {"holdout_losses": result.holdout_losses, "best_epoch": result.best_epoch}
        self.directory.add_phase(number, "train", facts)
        write_bytes(self.directory.artefact(number, "train"), data)
        unfinished.unlink(missing_ok=True)

    def _training_set(self, number: int) -> list[Tensor]:
        """Images and targets of all rounds up to this one. Each round is added once, so all are held once."""
        done, held = self._gathered
        for earlier in range(done, number + 1):
            for part in self._labelled(earlier):
                held = with_bought(held, part, self._config.teacher.form.top)
        self._gathered = (number + 1, held)
        return held

    def _evaluate(self, number: int) -> None:
        begin = time.monotonic()
        path = self.directory.artefact(number, "train")
        test = self._inputs.test
        scores = Scores() if test is None else self._measure(path, test, number)
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

    def _measure(self, student: Path, test: ImageSet, number: int) -> Scores:
        """The student on the test images, and beside the teacher on those that the teacher answers within the cap."""
        rows = rows_to_ask(len(test), self._run.evaluation_queries, self._config.seed)
        asked = rows.numpy()
        if test.labels is None:  # the other images say nothing
            if len(rows) == 0:
                return Scores()
            test, rows = ImageSet(images=taken(test.images, rows)), torch.arange(len(rows))
        threads = self._config.resources.trainer.thread_count
        predictions = predict(load_student(student), test.images, threads=threads).argmax(dim=1)
        nothing = torch.empty(0, dtype=torch.int64)
        if len(rows) == 0:
            return score(predictions, test.labels, nothing, nothing)
        try:
            images = test.images if len(rows) == len(test) else taken(test.images, rows)
            bought = self._buy(images, number, "evaluation", _namer("image {} of test", asked))
        except TeacherError as error:
            self._run.observer.note(f"the teacher could not be measured: {error}")
            return score(predictions, test.labels, nothing, nothing)
        return score(predictions, test.labels, rows[bought.positions], bought.answers.labels)


def _namer(words: str, ids: np.ndarray | None) -> Callable[[int], str]:
    """Names an image by its place in what was asked: its id where there are ids, else its position."""
    return lambda position: words.format(position if ids is None else ids[position])
