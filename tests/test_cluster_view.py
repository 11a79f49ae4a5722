"""What a cluster sees of kdray: workers that wait for nodes, and the metrics that its dashboard shows."""

import json
import re
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
import torch

from actors.metrics import PURPOSES, RunMetrics, SearchMetrics
from actors.scoring import RaySearcher
from actors.students import RayTrainer
from kdray.errors import ScoringError
from kdray.ledger import Ledger
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import build_model
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.search import SearchRequest
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings
from kdray.training.fitting import StudentSpec
from kdray.training.recipe import StudentSection

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.mark.storm
@pytest.mark.long
def test_workers_that_do_not_fit_raise_demand_and_the_others_work_meanwhile(ray_local, pool, model):
    class Holder:
        def ready(self) -> None: ...

    holder = ray_local.remote(Holder).options(num_cpus=3).remote()  # which leaves one CPU of four
    ray_local.get(holder.ready.remote())
    searcher = RaySearcher(3, chunk=512, settings=EXHAUSTIVE)
    try:
        searcher.start()
        waiting = eventually(lambda: pending_requests(ray_local), lambda found: len(found) == 2)
        assert waiting == [{"CPU": 1.0}] * 2
        found = searcher.search(pool, model, SearchRequest(k=50))
        assert pending_requests(ray_local) == waiting
        ray_local.kill(holder)  # as if two nodes had come
        assert len(set(searcher.pids())) == 3
    finally:
        searcher.close()
        ray_local.kill(holder)
    reference = LocalSearcher(512, settings=EXHAUSTIVE).search(pool, model, SearchRequest(k=50))
    assert found.ids.tolist() == reference.ids.tolist()


def test_workers_for_gpus_that_are_not_there_ask_for_them_and_are_waited_for(ray_local, pool, model, monkeypatch):
    monkeypatch.setattr("actors.scoring.LONG_WAIT_S", 1.0)
    searcher, notes = RaySearcher(2, gpus=1, chunk=512, settings=EXHAUSTIVE, patience_s=3.0), []
    try:
        with pytest.raises(ScoringError, match=r"no scoring worker for 3 s.*resources\.patience_s"):
            searcher.search(pool, model, SearchRequest(k=5), on_note=notes.append)
        assert pending_requests(ray_local) == [{"CPU": 1.0, "GPU": 1.0}] * 2
    finally:
        searcher.close()
    assert notes == ["no scoring worker yet: 2 wait for a CPU and 1 GPU each; the run stops if none starts within 3 s"]


def test_training_that_gets_no_gpu_asks_for_it_and_says_what_to_do(ray_local, monkeypatch):
    monkeypatch.setattr("actors.students.LONG_WAIT_S", 1.0)
    card = ModelCard(model="lenet5", image_shape=(1, 28, 28), num_classes=10)
    spec = StudentSpec(card=card, mean=[0.5], std=[0.2], recipe=StudentSection(), seed=0, threads=1)
    notes: list[str] = []
    trainer = RayTrainer(spec, gpus=1, patience_s=3.0, on_note=notes.append)
    with pytest.raises(ScoringError, match=r"waits for 1 GPU, and none came free for 3 s; set resources\.trainer"):
        trainer.fit(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.eye(10)[:4], 0)
    assert notes == ["the training worker waits for 1 GPU; the run stops if none comes free within 3 s"]
    eventually(lambda: pending_requests(ray_local), lambda found: found == [])  # nothing is left that asks


# Metrics

# As Ray exports them: a name of ours, with what Prometheus's text adds to each kind.
EXPORTED = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def metrics_of_the_code() -> dict[str, set[str]]:
    """Exported names of each of kdray's metrics."""
    code = (ROOT / "actors" / "metrics.py").read_text()
    found = re.findall(r'(Counter|Gauge|Histogram)\(\s*"(kdray_\w+)"', code)
    return {name: {f"ray_{name}{end}" for end in EXPORTED[kind]} for kind, name in found}


def panels() -> list[dict]:
    return json.loads((ROOT / "deploy" / "grafana.json").read_text())["panels"]


def shown() -> set[str]:
    """Metrics that the dashboard asks for."""
    return set(re.findall(r"ray_\w+", json.dumps([panel["targets"] for panel in panels()])))


def test_the_dashboard_shows_every_metric_and_no_other():
    known = metrics_of_the_code()
    assert len(known) == 7
    assert shown() <= set().union(*known.values())
    for name, exported_as in known.items():
        assert exported_as & shown(), f"{name} is in no panel"


def test_the_panels_can_be_told_apart_and_do_not_overlap():
    assert len({panel["id"] for panel in panels()}) == len({panel["title"] for panel in panels()}) == len(panels())
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_the_docs_name_every_metric():
    text = (ROOT / "docs" / "clusters.md").read_text()
    table = set(re.findall(r"^\| `(ray_kdray_\w+)`", text, re.MULTILINE))
    assert {re.sub(r"^ray_|_total$", "", name) for name in table} == set(metrics_of_the_code())


def exported(ray) -> dict[tuple[str, str], float]:
    """kdray's metrics at the node's metrics port, in Prometheus's text: (name, labels) -> value."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    lines = re.findall(r"^(ray_kdray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in lines}


def value_of(found: dict[tuple[str, str], float], name: str, **labels: str) -> float | None:
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    values = [value for (each, tags), value in found.items() if each == name and all(w in tags for w in wanted)]
    return values[0] if values else None


@pytest.mark.storm
@pytest.mark.long  # a driver shows nothing where Ray's agent of metrics took over ten seconds to start, beside storms
def test_a_run_shows_what_it_spends_and_who_scores(ray_local, make_config, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    changes = {"budget__price_per_query": 0.25, "budget__currency": "EUR", "resources__scoring_workers": 2}
    changes |= {"resources__teacher_workers": 0, "select__rounds": 3}
    # A worker tells its figures once a second, and the last ones never: these live for some seconds after they scored.
    changes |= {"student__model": "small-cnn", "student__epochs": 40}
    receipt = run(make_config(**changes), directory).receipt
    assert (receipt.queries, receipt.evaluation_queries) == (160, 100)
    owner = directory.owner()

    def told(found) -> bool:  # one figure may be a second behind another
        charged = {p: value_of(found, "ray_kdray_queries_charged", run=owner, purpose=p) for p in PURPOSES}
        return (
            charged == {"training": 160, "evaluation": 100, "estimate": 0}
            and value_of(found, "ray_kdray_spend", run=owner, currency="EUR") == 65
            and value_of(found, "ray_kdray_budget_left", run=owner, purpose="training") == 0
            and value_of(found, "ray_kdray_scoring_workers", state="ready") in (1, 2)  # at the end of so short a search
            and (value_of(found, "ray_kdray_candidates_scored_total") or 0) > 0
            # The names that the dashboard asks for are those that Ray exports.
            and shown() - {name for name, _ in found} <= {"ray_kdray_chunks_requeued_total"}
        )

    eventually(lambda: exported(ray_local), told)


def test_requeued_tasks_are_counted_once(ray_local):
    metrics, total = SearchMetrics(), "ray_kdray_chunks_requeued_total"
    before = value_of(exported(ray_local), total) or 0
    for requeued in (0, 2, 2, 3):
        metrics.seen(requeued=requeued, ready=1, waiting=4)
    found = eventually(lambda: exported(ray_local), lambda found: value_of(found, total) == before + 3)
    assert value_of(found, "ray_kdray_scoring_workers", state="waiting") == 4


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
