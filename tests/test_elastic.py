"""Nodes that come and go in the middle of a search, on a simulated cluster: the selection stays what it is.

In small, with a worker that dies and CPUs that become free, in test_actors.py.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.storm, pytest.mark.xdist_group("ray")]

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "elastic.py"


@pytest.fixture(scope="module")
def elastic():
    """The benchmark, which measures what is asserted here."""
    spec = importlib.util.spec_from_file_location("elastic", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["elastic"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> str:
    """What a search without Ray chooses, as the benchmark writes it."""
    import hashlib

    import torch

    from kdray.models.classifier import build_model
    from kdray.pools.mixup import MixupPool
    from kdray.search import SearchRequest
    from kdray.search.local import LocalSearcher
    from kdray.sections.search import SearchSettings

    data = torch.randint(0, 256, (250, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pool, model = MixupPool(data, (0.3, 0.4, 0.5, 0.6, 0.7)), build_model("lenet5", (1, 28, 28), 10, seed=0)
    searcher = LocalSearcher(1024, settings=SearchSettings(search="exhaustive"))
    found = searcher.search(pool, model, SearchRequest(k=200))
    return hashlib.blake2b(found.ids.tobytes() + found.scores.tobytes(), digest_size=8).hexdigest()


def test_a_node_that_dies_costs_its_tasks_and_nothing_else(elastic, reference):
    found = elastic.run("kill", 250)
    assert found["chosen"] == reference
    assert found["workers_before"] == 2 and found["requeued"] >= 1


def test_a_node_that_joins_is_put_to_work(elastic, reference):
    found = elastic.run("join", 250)
    assert found["chosen"] == reference
    assert found["workers_before"] == 1 and found["requeued"] == 0
    assert found["notes"] == "1 more scoring worker, 2 in all: CPUs have become free"
