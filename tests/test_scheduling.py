"""The shard scheduler's policy, without Ray: every task done once, whatever dies, steals or comes late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scheduling import MAX_TRIES, Assignment
from actors.students import with_most_cpus
from kdray.errors import ScoringError


def test_each_worker_gets_two_tasks_in_turn():
    assignment = Assignment(5, ["a", "b"])
    assert assignment.next_tasks() == [("a", 0), ("b", 1), ("a", 2), ("b", 3)]
    assert assignment.next_tasks() == []
    assert assignment.done("b", 1)
    assert assignment.next_tasks() == [("b", 4)]


def test_what_a_dead_worker_held_goes_to_the_front_of_the_queue():
    assignment = Assignment(6, ["a", "b"])
    assignment.next_tasks()
    assignment.lost("a")
    assignment.done("b", 1)
    assert assignment.next_tasks() == [("b", 0)]
    assert assignment.requeued == 2
    assert assignment.workers == ["b"]
    assignment.joined("a")
    assert assignment.next_tasks() == [("a", 2), ("a", 4)]


def test_an_idle_worker_steals_what_waits_and_the_first_to_finish_counts():
    assignment = Assignment(2, ["a"])
    assert assignment.next_tasks() == [("a", 0), ("a", 1)]
    assignment.joined("b")
    assert assignment.next_tasks() == [("b", 1)]
    assert assignment.stolen == 1
    assert assignment.done("b", 1)
    assert not assignment.done("a", 1), "the copy's result is not counted again"
    assert assignment.done("a", 0)
    assert assignment.complete


def test_idle_workers_copy_each_waiting_task_once():
    assignment = Assignment(4, ["a", "b"])
    assignment.next_tasks()
    for worker in ("c", "d", "e"):
        assignment.joined(worker)
    assert assignment.next_tasks() == [("c", 2), ("d", 3)]
    assert assignment.next_tasks() == []
    assignment.lost("c")
    assert assignment.requeued == 0, "a holds it"
    assert assignment.next_tasks() == [("e", 2)]
    assert assignment.done("e", 2) and not assignment.done("a", 2)
    assert assignment.stolen == 3


def test_a_stolen_task_is_not_queued_again_while_its_copy_runs():
    assignment = Assignment(2, ["a"])
    assignment.next_tasks()
    assignment.joined("b")
    assignment.next_tasks()
    assignment.lost("a")
    assert assignment.requeued == 1, "task 0; task 1 runs on b"


def test_a_task_that_kills_every_worker_ends_the_search():
    assignment = Assignment(1)
    for _ in range(MAX_TRIES - 1):
        assignment.joined("a")
        assert assignment.next_tasks() == [("a", 0)]
        assignment.lost("a")
    assignment.joined("a")
    assignment.next_tasks()
    with pytest.raises(ScoringError, match="task 0"):
        assignment.lost("a")


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_task_is_counted_once_under_random_deaths(tasks, workers, depth, random):
    assignment = Assignment(tasks, range(workers), depth)
    running, counted, deaths = [], [], 0
    while not assignment.complete:
        running += assignment.next_tasks()
        assert all(sum(1 for w, _ in running if w == worker) <= depth for worker in range(workers))
        if random.random() < 0.2 and deaths < MAX_TRIES - 1 and assignment.workers:
            victim = random.choice(assignment.workers)
            assignment.lost(victim)
            running = [(worker, task) for worker, task in running if worker != victim]
            deaths += 1
            assignment.joined(victim)
        elif running:
            worker, task = running.pop(random.randrange(len(running)))
            if assignment.done(worker, task):
                counted.append(task)
    assert sorted(counted) == list(range(tasks))


def test_the_student_is_trained_where_the_most_cpus_are():
    def node(name: str, cpus: float | None, alive: bool = True) -> dict:
        return {"NodeID": name, "Alive": alive, "Resources": {} if cpus is None else {"CPU": cpus}}

    nodes = [node("head", None), node("b", 4), node("a", 8), node("dead", 64, alive=False)]
    assert with_most_cpus(nodes, "head") == "a"
    assert with_most_cpus([node("a", 8), node("b", 8), node("c", 2)], "a") == "a"  # of equals, the driver's
    assert with_most_cpus([node("head", None)], "head") == "head"
    assert with_most_cpus(nodes, "head", failed={"a"}) == "b"  # it may be dead, though Ray has not noticed yet
    assert with_most_cpus(nodes, "head", failed={"a", "b", "head"}) == "a"
