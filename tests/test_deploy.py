"""What a cluster needs: the files that start one, the metrics that it shows, and workers that wait for nodes."""

import re
import time
import urllib.request
import uuid

import pytest
import torch

from actors.metrics import PURPOSES, RunMetrics
from actors.scoring import RaySearcher
from kdray.errors import ScoringError
from kdray.ledger import Ledger
from kdray.models.classifier import build_model
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.search import SearchRequest
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings

EXHAUSTIVE = SearchSettings(search="exhaustive")


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    generator = torch.Generator().manual_seed(0)
    return MixupPool(torch.randint(0, 256, (60, 1, 28, 28), generator=generator, dtype=torch.uint8), [0.3, 0.5, 0.7])


@pytest.fixture(scope="module")
def model():
    return build_model("lenet5", (1, 28, 28), 10, seed=1)


def pending_requests(ray) -> list[dict[str, float]]:
    """What actors and tasks wait for: the demand for which an autoscaler starts nodes."""
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    state = get_cluster_resource_state(ray._private.worker.global_worker.gcs_client)
    return [
        dict(entry.request.resources_bundle) for entry in state.pending_resource_requests for _ in range(entry.count)
    ]


def eventually(look, wanted, seconds: float = 60.0):
    """The result of `look` once `wanted` holds of it."""
    deadline = time.monotonic() + seconds
    while not wanted(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


# Workers that wait for nodes


def test_workers_that_do_not_fit_raise_demand_and_the_others_work_meanwhile(ray_local, pool, model):
    searcher = RaySearcher(6, chunk=512, settings=EXHAUSTIVE)  # on four CPUs
    try:
        searcher.start()
        waiting = eventually(lambda: pending_requests(ray_local), lambda found: len(found) == 2)
        assert waiting == [{"CPU": 1.0}] * 2
        found = searcher.search(pool, model, SearchRequest(k=50))
        assert pending_requests(ray_local) == waiting
    finally:
        searcher.close()
    reference = LocalSearcher(512, settings=EXHAUSTIVE).search(pool, model, SearchRequest(k=50))
    assert found.ids.tolist() == reference.ids.tolist()


def test_workers_for_gpus_that_are_not_there_ask_for_them_and_are_waited_for(ray_local, pool, model, monkeypatch):
    monkeypatch.setattr("actors.scoring._LONG_WAIT_S", 1.0)
    searcher, notes = RaySearcher(2, gpus=1, chunk=512, settings=EXHAUSTIVE, patience_s=3.0), []
    try:
        with pytest.raises(ScoringError, match=r"no scoring worker for 3 s.*resources\.scoring_patience_s"):
            searcher.search(pool, model, SearchRequest(k=5), on_note=notes.append)
        assert pending_requests(ray_local) == [{"CPU": 1.0, "GPU": 1.0}] * 2
    finally:
        searcher.close()
    assert notes == ["no scoring worker yet: 2 wait for a CPU and 1 GPU each; the run stops if none starts within 3 s"]


# Metrics


def exported(ray) -> dict[tuple[str, str], float]:
    """kdray's metrics at the node's metrics port, in Prometheus's text: (name, labels) -> value."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    lines = re.findall(r"^(ray_kdray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in lines}


def value_of(found: dict[tuple[str, str], float], name: str, **labels: str) -> float | None:
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    values = [value for (each, tags), value in found.items() if each == name and all(w in tags for w in wanted)]
    return values[0] if values else None


def test_a_run_shows_what_it_spends_and_who_scores(ray_local, make_config, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    changes = {"budget__price_per_query": 0.25, "budget__currency": "EUR", "resources__scoring_workers": 2}
    receipt = run(make_config(select__rounds=1, student__epochs=1, **changes), directory).receipt
    owner = directory.owner()
    found = eventually(
        lambda: exported(ray_local), lambda found: value_of(found, "ray_kdray_spend", run=owner, currency="EUR") == 65
    )
    charged = {p: value_of(found, "ray_kdray_queries_charged", run=owner, purpose=p) for p in PURPOSES}
    assert charged == {"training": receipt.queries, "evaluation": receipt.evaluation_queries, "estimate": 0}
    assert charged == {"training": 160, "evaluation": 100, "estimate": 0}
    assert value_of(found, "ray_kdray_budget_left", run=owner, purpose="training") == 0
    assert value_of(found, "ray_kdray_scoring_workers", state="ready") == 2
    assert value_of(found, "ray_kdray_candidates_scored_total") > 0


def test_metrics_of_a_run_know_what_is_on_its_way_and_read_the_ledger_only_while_the_teacher_is_asked(
    ray_local, tmp_path
):
    ledger, owner = Ledger(tmp_path / "ledger.sqlite"), f"run-{uuid.uuid4().hex}"
    ledger.open_account(owner, {"training": 10})
    metrics = RunMetrics(ledger, owner, price=None, currency="USD")
    metrics.phase(0, "query")
    ledger.mark_uncertain(ledger.reserve(3, owner=owner))
    ledger.reserve(4, owner=owner)
    metrics.phase(0, "train")  # the end of the phase that asked
    ledger.close()
    metrics.progress(1, 10)  # the closed ledger would raise
    found = eventually(
        lambda: exported(ray_local),
        lambda found: value_of(found, "ray_kdray_queries_charged", run=owner, purpose="training") == 3,
    )
    assert value_of(found, "ray_kdray_budget_left", run=owner, purpose="training") == 3
    assert value_of(found, "ray_kdray_spend", run=owner) is None
