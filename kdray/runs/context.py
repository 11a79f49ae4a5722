"""What the loop of a run works with."""

from dataclasses import dataclass
from typing import Any

from kdray.observers import Observer
from kdray.runs.inputs import Inputs
from kdray.runs.policy import PurchasePolicy
from kdray.search.requests import Searcher
from kdray.teachers.pool import TeacherPool
from kdray.training.base import Trainer


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the loop works with. It does not know whether the parts run here or on Ray.

    Attributes:
        inputs: what the config names, read and checked.
        searcher, teachers, trainer: see their protocols.
        ledger: `kdray.ledger.store.Ledger`, here or behind an actor.
        observer: told what happens.
        owner: names the run in the ledger.
        policy: how the teacher may be asked.
        evaluation_queries: most teacher queries on test images.
        whole_rounds: where the cap of all who share the ledger leaves too little for a round, stop before it is trained
            on, so that it can be completed later. Otherwise the run goes on with the answers it has.
    """

    inputs: Inputs
    searcher: Searcher
    teachers: TeacherPool
    trainer: Trainer
    ledger: Any
    observer: Observer
    owner: str
    policy: PurchasePolicy
    evaluation_queries: int
    whole_rounds: bool = False
