"""A driver that buys, and may be killed at any moment: what `kdray run` does around a purchase, and nothing else."""

import sys

import numpy as np
import torch

from kdray.errors import TeacherError
from kdray.ledger.limits import Limits
from kdray.ledger.store import Ledger
from kdray.runs.purchase import PurchasePolicy, buy
from kdray.teachers.async_pool import AsyncTeacherPool
from kdray.teachers.http import HttpTeacherConfig as HttpConfig
from kdray.teachers.retry import RetryPolicy, RetryState

SHAPE = (1, 4, 4)
DONE, AGAIN = 0, 3


def images(count: int, seed: int) -> torch.Tensor:
    """Distinct random images uint8 [count, 1, 4, 4]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return torch.from_numpy(pixels)


def owner(seed: int) -> str:
    """A run's name in the ledger."""
    return f"run-{seed}"


def config(url: str, seed: int, timeout_s: float = 0.6) -> HttpConfig:
    """The teacher's section: every run has a teacher of its own."""
    return HttpConfig(kind="http", url=url, model="m", name=f"faulty-{seed}", classes=3, timeout_s=timeout_s)


def drive(url: str, ledger_path: str, budget: int, count: int, seed: int, address: str | None) -> None:
    """Buy answers to `count` images on Ray at `address` (None: in this process), and leave with DONE or AGAIN."""
    section = config(url, seed)
    teacher = section.build(SHAPE)
    if address is None:
        ledger, pool = Ledger(ledger_path), AsyncTeacherPool(teacher, 4)
    else:
        from functools import partial

        import ray

        from actors.cluster import NAMESPACE
        from actors.ledger import RayLedger
        from actors.teachers import RayTeacherPool

        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        ledger = RayLedger(ledger_path)
        pool = RayTeacherPool(teacher, partial(section.build, SHAPE), 1, slots=4)
        pool.start()
    ledger.open_account(owner(seed), {"training": budget})
    ledger.recover(owner(seed))
    policy = PurchasePolicy(
        limits=Limits(in_flight=4),
        retry=RetryState(RetryPolicy(tries=8, backoff_s=0.02, max_backoff_s=0.2, max_bad_share=1.0)),
        lease_s=5.0,
        probe=True,
    )
    try:
        buy(images(count, seed), teachers=pool, ledger=ledger, batch_size=8, owner=owner(seed), policy=policy)
        code = DONE
    except TeacherError as error:
        print(error, flush=True)
        code = AGAIN
    finally:
        pool.close()
        ledger.close()
    sys.exit(code)
