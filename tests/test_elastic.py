"""Nodes that come and go in the middle of a search or of a run, on a simulated cluster: the end stays what it is.

In small, with a worker that dies and CPUs that become free, in test_actors.py.
"""

import importlib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.storm, pytest.mark.xdist_group("elastic")]  # each has a cluster of its own

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def elastic(monkeypatch):
    """The benchmark of searches, which measures what is asserted here."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("elastic")


@pytest.fixture
def node_loss(monkeypatch):
    """The benchmark of whole runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("node_loss")


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


@pytest.mark.long
@pytest.mark.parametrize("case", ["training", "scoring", "asking", "billed", "of_two"])
def test_a_node_that_dies_in_a_run_changes_nothing_but_the_time(case, node_loss, tmp_path):
    from kdray.config.load import parse_config
    from kdray.runs.directory import RunDirectory
    from kdray.runs.run import run

    found = node_loss.run(case)
    assert found["spent"] <= node_loss.BUDGET
    assert (found["uncertain"] > 0) == (case == "billed")  # what was on its way was charged, and asked again
    if case == "of_two":
        assert found["student"] == node_loss.run("two")["student"]
    elif case != "billed":
        directory = RunDirectory(tmp_path / "run")
        run(parse_config(node_loss.config("none")), directory, local=True)
        assert found["student"] == node_loss.digest((directory.path / "student.safetensors").read_bytes())


@pytest.mark.long
def test_a_node_that_joins_is_put_to_work(elastic, reference):
    found = elastic.run("join", 250)
    assert found["chosen"] == reference
    assert found["workers_before"] == 1 and found["requeued"] == 0
    assert found["notes"] == "1 more scoring worker, 2 in all: CPUs have become free"
