"""Several kinds of candidates: one pool of them all, the trial, what is found, and the rounds that follow."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import command, examples, on_workers
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import ConfigError, TrainingError
from kdray.pools.base import pools
from kdray.pools.images import ImagePool
from kdray.pools.kinds import KindsPool
from kdray.pools.mixup import MixupPool
from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.kinds import Kinds
from kdray.runs.learning import learn
from kdray.runs.run import resume, run
from kdray.select.base import select
from kdray.training.trainer import LocalTrainer

KINDS = [{"kind": "mixup", "lambdas": [0.3, 0.5, 0.7]}, {"kind": "pairs", "blend": "cutmix", "pre": "affine"}]
POOL = {"kind": "auto", "of": KINDS, "share": 0.5}


def images(n: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def both(n: int = 6) -> KindsPool:
    return KindsPool([pools.parse(kind).build(images(n), 0) for kind in KINDS])


@examples(30)
@given(st.lists(st.integers(0, 15 * 3 + 15 * 4 - 1), max_size=20))
def test_a_candidate_is_the_one_of_its_kind(ids):
    pool = both()
    mixup, cut = pool.kinds
    wanted = [mixup.render(torch.tensor([k])) if k < 45 else cut.render(torch.tensor([k - 45])) for k in ids]
    ids = torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(pool.render(ids), torch.cat([images()[:0], *wanted]))
    assert torch.equal(torch.cat([images()[:0], *pool.batches(ids, 7)]), pool.render(ids))
    assert pool.numbers(ids).tolist() == [int(k >= 45) for k in ids]
    assert pool.describe(ids) == {"kind": ["affine+cutmix" if k >= 45 else "mixup" for k in ids]}


def test_ids_go_to_a_kind_and_back():
    pool = both()
    assert len(pool) == pool.num_groups == 45 + 60
    assert pool.inner(0, np.array([0, 44, 45, 104])).tolist() == [0, 44]
    assert pool.inner(1, np.array([0, 44, 45, 104])).tolist() == [0, 59]
    assert pool.outer(1, np.array([0, 59])).tolist() == [45, 104]
    for wrong in (-1, 105):
        with pytest.raises(IndexError):
            pool.render(torch.tensor([wrong]))


@pytest.mark.parametrize("count", [1, 2, 11, 30])
def test_a_trial_draws_evenly_and_one_of_a_pair(count):
    pool = both()
    ids = pool.draw(count, np.random.default_rng(3))
    kinds = pool.numbers(torch.from_numpy(ids))
    assert kinds.tolist() == [k % 2 for k in range(count)], "in turn, so a budget that ends early is even too"
    pairs = [(int(kind), int(one) // kind_pool.group_size) for kind, kind_pool, one in of_kinds(pool, ids)]
    assert len(set(pairs)) == count
    assert {int(one) % 3 for kind, _, one in of_kinds(pool, ids) if kind == 0} == {1}, "mixup's middle λ, as random"


def of_kinds(pool: KindsPool, ids: np.ndarray) -> list:
    return [(number, kind, one) for number, kind in enumerate(pool.kinds) for one in pool.inner(number, ids)]


def test_a_trial_that_is_too_large_for_a_kind_is_refused():
    with pytest.raises(ConfigError, match=r"pool\.of\.0: 16 candidates wanted .* it has 15 groups"):
        both().draw(31, np.random.default_rng(0))


def test_pools_that_do_not_go_together():
    mixup = MixupPool(images(), [0.5])
    with pytest.raises(ConfigError, match=r"pool\.of\.1: its candidates are the images"):
        KindsPool([mixup, ImagePool(images())])
    with pytest.raises(ConfigError, match=r"pool\.of\.1: its candidates have shape \(1, 4, 8\)"):
        KindsPool([mixup, MixupPool(images()[:, :, :4], [0.5])])


def test_equal_names_are_told_apart():
    kinds = [MixupPool(images(), [0.5]), MixupPool(images(), [0.3])]
    assert KindsPool(kinds).names == ["mixup (0)", "mixup (1)"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"select__rounds": 0}, r"select\.rounds of at least 1"),
        ({"select": {"strategy": "margin", "schedule": "nested"}}, r"select\.schedule = even"),
        ({"select": {"strategy": "rad", "m": "estimate"}}, r"select\.m: estimate"),
        ({"select": {"strategy": "unixkd"}}, r"unixkd buys mixes of images at every λ of a grid"),
        ({"pool": {**POOL, "of": KINDS[:1]}}, r"pool\.of"),
        ({"pool": {**POOL, "of": [KINDS[0], KINDS[0]]}}, r"pool\.of\.1: this pool is named twice"),
        ({"pool": {**POOL, "of": [KINDS[0], {"kind": "auto"}]}}, r"1: a pool of kind auto cannot be"),
        ({"pool": {**POOL, "of": [KINDS[0], {"kind": "pears"}]}}, r"pool\.of\.1.*'pears'"),
        ({"pool": {**POOL, "share": 1.0}}, r"pool\.share"),
        (
            {"pool": {**POOL, "of": [{**KINDS[0], "keep": 9}, "mixup", KINDS[1]]}},
            r"pool\.of: keep is 9\.0 of one kind and 5\.0 of another",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(**({"pool": POOL} | changes))


def test_a_budget_without_rounds_after_the_trial_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"pool\.share: 2 of the 2 queries after round 0 .* raise budget\.queries"):
        read_inputs(make_config(pool=POOL, budget__queries=42))


def test_a_trial_that_is_too_large_is_refused_before_anything_is_paid(make_config):
    config = make_config(pool=POOL, images__count=5, budget__queries=60, select={"strategy": "uniform"})
    with pytest.raises(ConfigError, match=r"pool\.of\.0: 14 candidates wanted .* it has 10 groups"):
        read_inputs(config)


def test_the_schedule_has_the_trial_and_the_budget(make_config):
    inputs = read_inputs(make_config(pool={**POOL, "share": 0.25}))
    assert inputs.schedule == [40, 30, 45, 45] and len(inputs.kinds) == 2


@pytest.mark.parametrize("first", [0, 2])
def test_a_trial_that_nothing_could_judge_is_refused_before_anything_is_paid(first, make_config):
    config = make_config(pool=POOL, select__first=first, labelled={"source": "digits", "rows": "0:20", "size": 16})
    with pytest.raises(ConfigError, match=rf"images of round 0, and that asks about {first}; set select\.first to 3"):
        read_inputs(config)


def test_the_pool_is_searched_as_its_kinds_say(make_config):
    kinds = [KINDS[1], {**KINDS[0], "search": "exhaustive", "keep": 9, "mixing": "first-layer"}]
    config = make_config(pool={**POOL, "of": kinds})
    assert (config.search.search, config.search.keep, config.search.mixing) == ("exhaustive", 9, "first-layer")
    with pytest.raises(ConfigError, match=r"pool\.mixing: the first layer of resnet18 cannot be taken apart"):
        read_inputs(make_config(pool={**POOL, "of": kinds}, student__model="resnet18"))


def test_pairs_auto_is_a_number_for_each_kind(make_config):
    kinds = [{**KINDS[0], "pairs": "auto"}, {**KINDS[1], "pairs": 300}]
    inputs = read_inputs(make_config(pool={**POOL, "of": kinds}))
    assert [kind.num_groups for kind in inputs.kinds] == [780, 300]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights):
    """A run with a trial of two kinds, and unpaid candidates in its last round."""
    from conftest import digits_config

    from kdray.config.load import parse_config

    config = parse_config(digits_config(teacher_weights, pool=POOL, student__unpaid={"students": 1}))
    return run(config, RunDirectory(tmp_path_factory.mktemp("kinds") / "run"), local=True)


def test_a_run_tries_all_kinds_and_goes_on_with_one(finished):
    directory = RunDirectory(finished.directory)
    found = json.loads(directory.artefact(2, "compare").read_text())
    names = ["mixup", "affine+cutmix"]
    assert list(found["agreement"]) == names and found["answers"] == dict.fromkeys(names, 40)
    best = max(found["agreement"].values())
    assert found["agreement"][found["chosen"]] == best
    rounds = [directory.read_labelled(number, 10) for number in range(4)]
    assert [len(part) for part in rounds] == [40, 60, 30, 30] and finished.receipt.queries == 160
    assert set(rounds[0].source) == {"image"}
    assert [rounds[1].source.count(name) for name in names] == [30, 30]
    assert {name for part in rounds[2:] for name in part.source} == {found["chosen"]}
    assert finished.history[2].training["choices"]["pool"] == found
    (note,) = [note for note in finished.history[2].training["notes"] if note.startswith("pool: auto chose")]
    assert found["chosen"] in note


class _Breaks:
    """A trainer that ends a run before its fourth student, once, and cannot train some kind."""

    def __init__(self, trainer, diverges: int | None = None) -> None:
        self._trainer, self._diverges, self.trained = trainer, diverges, 0

    def fit(self, images, targets, number, on_epoch, *, final):
        if self.trained == 3:
            self.trained = 100
            raise KeyboardInterrupt
        self.trained += 1
        if self._diverges is not None and self.trained % 2 == self._diverges:
            raise TrainingError("the loss is not finite")
        return self._trainer.fit(images, targets, number, on_epoch, final=final)


@pytest.fixture
def compare(finished, tmp_path):
    """Compares the kinds of the finished run again, in a copy of it: trainer -> choice."""
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished.directory, copy.path)
    shutil.rmtree(copy.round(2))
    inputs = read_inputs(finished.config)
    kinds = Kinds(copy, inputs.pool)
    return lambda trainer: kinds.compare(
        trainer, given=[], num_classes=10, top=None, seed=3, on_progress=lambda done, of: None
    )


def test_a_comparison_that_is_broken_off_does_not_train_again_what_it_had(finished, compare, tmp_path):
    trainer = _Breaks(LocalTrainer(read_inputs(finished.config).spec))
    with pytest.raises(KeyboardInterrupt):
        compare(trainer)
    assert compare(trainer).facts() == json.loads(RunDirectory(finished.directory).artefact(2, "compare").read_text())
    assert trainer.trained == 100 + 3, "six students in all: two kinds, three parts"
    assert not (tmp_path / "copy/rounds/002/compared").exists()


@pytest.mark.parametrize(("diverges", "chosen"), [(1, "affine+cutmix"), (0, "mixup")])
def test_a_kind_that_cannot_be_trained_with_is_no_choice(diverges, chosen, finished, compare):
    trainer = _Breaks(LocalTrainer(read_inputs(finished.config).spec), diverges)
    trainer.trained = 4  # it does not break off
    choice = compare(trainer)
    assert choice.name == chosen and sorted(choice.agreement.values())[0] == 0


@pytest.mark.storm
def test_a_strategy_that_compares_features_knows_the_images_of_every_kind(make_config, monkeypatch, tmp_path):
    tasks = []
    monkeypatch.setattr("kdray.runs.loop.select", lambda strategy, task: tasks.append(task) or select(strategy, task))
    run(make_config(pool=POOL, select={"strategy": "coreset", "rounds": 2}), RunDirectory(tmp_path / "run"), local=True)
    assert [(len(task.known), len(task.taken)) for task in tasks] == [(70, 30), (70, 60)], "40 and 30 of the other kind"


def test_kinds_of_equal_names_have_the_same_name_in_every_round(make_config, tmp_path):
    kinds = [KINDS[1], {**KINDS[1], "draws": 2}]
    result = run(make_config(pool={**POOL, "of": kinds}), RunDirectory(tmp_path / "run"), local=True)
    tried, *later = (set(part.source) for part in result.labelled[1:])
    assert tried == {"affine+cutmix (0)", "affine+cutmix (1)"}
    assert len(set.union(*later)) == 1 and set.union(*later) < tried


def test_the_report_says_which_round_tried_the_kinds(finished):
    page = write_report([RunDirectory(finished.directory)]).read_text()
    assert "Round 1: all kinds, at random</h3>" in page and "<span>affine+cutmix</span>" in page
    assert "Round 2: active-mixup</h3>" in page


def test_ids_on_disk_are_those_of_the_whole_pool(finished):
    from kdray.config.load import load_config

    directory = RunDirectory(finished.directory)
    pool = read_inputs(load_config(directory.config)).pool
    parts = [directory.read_labelled(number, 10) for number in (1, 2, 3)]
    for part in parts:
        assert torch.equal(pool.render(torch.from_numpy(part.ids)), part.images)
    kinds = Kinds(directory, pool)
    chosen = np.concatenate([kinds.inner(part.ids) for part in parts])
    groups = chosen // kinds.pool.group_size
    assert len(chosen) == 90 and len(np.unique(groups)) == 90, "a pair of the trial is not chosen again"


@pytest.mark.parametrize(
    "last",
    [
        "rounds/002/kind.json",
        *(
            pytest.param(f"rounds/{name}", marks=pytest.mark.storm)
            for name in ("002/candidates.parquet", "003/metrics.json")
        ),
    ],
)
def test_a_run_that_goes_on_ends_as_one_that_was_not_broken_off(last, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.directory, copy)
    done = sorted(path.relative_to(copy) for path in copy.glob("rounds/00[23]/*"))
    order = ["kind.json", "candidates.parquet", "labelled.parquet", "student.safetensors", "metrics.json"]
    for path in done:
        here = (path.parts[1], order.index(path.name) if path.name in order else len(order))
        if here >= (last.split("/")[1], order.index(last.split("/")[2])) and path.name != "phases.json":
            (copy / path).unlink()
    result = resume(RunDirectory(copy), local=True)
    assert result.receipt.queries == 160
    for path in done:
        if path.name in order[:2] + order[3:4]:
            assert (copy / path).read_bytes() == (finished.directory / path).read_bytes(), path


def test_training_from_what_was_bought_takes_the_kind_that_was_found(finished, tmp_path):
    from kdray.config.load import load_config

    directory = RunDirectory(finished.directory)
    curve = learn(directory, load_config(directory.config), out=tmp_path / "students")
    assert curve.points[-1].student.read_bytes() == directory.student.read_bytes()


@pytest.mark.storm
@pytest.mark.xdist_group("ray")
def test_ray_finds_and_trains_the_same(finished, ray_local, tmp_path):
    from kdray.config.load import load_config

    config = on_workers(load_config(RunDirectory(finished.directory).config))
    done = run(config, RunDirectory(tmp_path / "run"))
    for name in ("rounds/002/kind.json", "rounds/003/candidates.parquet", "student.safetensors"):
        assert (done.directory / name).read_bytes() == (finished.directory / name).read_bytes(), name


def test_a_plan_says_what_the_trial_takes(config_file):
    done = command("plan", config_file(pool={**POOL, "share": 0.25}))
    assert done.returncode == 0, done.stderr
    assert "2 kinds of candidates: 1,560 groups, 5,460 candidates" in done.stdout
    assert "40 for the images + 30 to try 2 kinds of candidates + 2 x 45" in done.stdout
