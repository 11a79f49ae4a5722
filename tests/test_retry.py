"""Patience: when to ask again, how long to rest, when to give up; with hand-made times and no sleeping."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.teachers.faults import Fault
from kdray.teachers.retry import RetryPolicy, RetryState

KINDS = ("refused", "throttled", "unsent", "lost", "malformed", "doubtful", "declined", "oversized", "failed")
ALONE = ("lost", "malformed", "doubtful")  # may be the accident of one request


def fault(kind: str, wait_s: float | None = None) -> Fault:
    return Fault(kind=kind, message=f"it was {kind}", wait_s=wait_s)


class Longest(random.Random):
    """Jitter that shortens nothing."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Shortest(random.Random):
    """Jitter that shortens as much as it may."""

    def uniform(self, a: float, b: float) -> float:
        return a


def proven(policy: RetryPolicy | None = None, jitter: random.Random | None = None) -> RetryState:
    patience = RetryState(policy or RetryPolicy(), jitter or Longest())
    patience.succeeded()
    return patience


# ---- money and meaning of each fault


def test_every_kind_of_fault_says_whether_it_may_be_billed_and_whether_asking_again_can_help():
    assert {kind for kind in KINDS if fault(kind).charged} == {"lost", "malformed", "doubtful", "failed"}
    assert {kind for kind in KINDS if fault(kind).final} == {"refused", "failed"}


# ---- requests on their way


def test_one_request_until_it_has_answered_and_one_while_it_fails():
    patience = RetryState(RetryPolicy(), Longest())
    assert [patience.slots(n) for n in (1, 8)] == [1, 1]
    patience.failed(fault("throttled"), 0, 1)
    assert patience.slots(8) == 1
    patience.succeeded()
    assert [patience.slots(n) for n in (1, 8)] == [1, 8]
    patience.failed(fault("lost"), 2, 3)
    assert patience.slots(8) == 1
    patience.succeeded()
    assert patience.slots(8) == 8


# ---- rests


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(ALONE)))
def test_the_rest_doubles_with_each_failure_and_is_capped(kind):
    patience = proven(RetryPolicy(backoff_s=0.5, max_backoff_s=10, tries=100))
    rests = [patience.failed(fault(kind), 10 * k, 10 * k + 1) for k in range(7)]
    assert rests == [0.5, 1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize("kind", ALONE)
def test_the_first_accident_of_one_request_gives_nobody_else_a_rest(kind):
    patience = proven(RetryPolicy(backoff_s=0.5, tries=100))
    assert [patience.failed(fault(kind), 10 * k, 10 * k + 1) for k in range(4)] == [0, 1, 2, 4]


def test_failures_of_requests_on_their_way_together_count_once():
    for kind, rests in (("throttled", [1, 2, 4]), ("lost", [0, 2, 4])):
        patience = proven(RetryPolicy(backoff_s=1, tries=3))
        together = [(0.0, 3.0), (1.0, 3.5), (2.9, 9.0)]  # all sent before the first of them failed
        assert [patience.failed(fault(kind), *times) for times in together] == [rests[0]] * 3
        assert patience.verdict(fault(kind)) is None
        # Sent after it: the teacher has failed again.
        assert [patience.failed(fault(kind), *times) for times in [(3.0, 9.5), (9.4, 9.6)]] == [rests[1]] * 2
        assert patience.verdict(fault(kind)) is None
        assert patience.failed(fault(kind), 9.5, 10) == rests[2]
        third = "the teacher failed 3 times in a row; last: it was lost"
        assert patience.verdict(fault(kind)) == (third if kind == "lost" else None)


def test_an_answer_ends_the_row():
    patience = proven(RetryPolicy(backoff_s=1, tries=3))
    for start in (0, 10, 20):
        assert [patience.failed(fault("throttled"), start + k, start + k + 1) for k in range(2)] == [1, 2]
        assert patience.verdict(fault("throttled")) is None
        patience.succeeded()


@pytest.mark.parametrize(("kind", "rest"), [("throttled", 1), ("unsent", 1), *((kind, 0) for kind in ALONE)])
def test_a_late_failure_of_an_earlier_wave_says_nothing_new(kind, rest):
    """Two requests were sent together; one failed, the teacher has answered since, and now the other one fails."""
    patience = proven(RetryPolicy(backoff_s=1))
    patience.failed(fault("lost"), 0, 1)
    patience.succeeded()
    assert patience.failed(fault(kind), 0.5, 2) == rest
    assert patience.slots(8) == 8


def test_a_rest_that_the_teacher_asks_for_is_the_least():
    patience = proven(RetryPolicy(backoff_s=4, max_backoff_s=60))
    assert patience.failed(fault("throttled", wait_s=3), 0, 1) == 4
    assert patience.failed(fault("throttled", wait_s=30), 2, 3) == 30
    patience.succeeded()
    assert patience.failed(fault("lost", wait_s=7), 4, 5) == 7


@given(
    st.lists(st.sampled_from(["ok", *KINDS]), max_size=40), st.floats(0.001, 100), st.floats(0.001, 1000),
    st.integers(0, 2**32),
)  # fmt: skip
def test_rests_lie_within_half_and_the_whole_of_what_the_row_gives(events, backoff, longest, seed):
    policy = RetryPolicy(backoff_s=backoff, max_backoff_s=longest, tries=1000)
    patience, row = proven(policy, random.Random(seed)), 0
    for time, event in enumerate(events):
        if event == "ok":
            patience.succeeded()
            row = 0
            continue
        row += 1
        rest = patience.failed(fault(event), time, time + 0.5)
        whole = min(longest, backoff * 2.0 ** (row - 1))
        if row == 1 and event in ALONE:
            assert rest == 0
        else:
            assert whole / 2 <= rest <= whole
        assert patience.slots(5) == 1


def test_the_jitter_is_by_itself_random_and_both_ends_are_within_bounds():
    rests = {proven(RetryPolicy(), random.SystemRandom()).failed(fault("throttled"), 0, 1) for _ in range(20)}
    assert len({RetryState(RetryPolicy()).failed(fault("throttled"), 0, 1) for _ in range(20)} | rests) == 40
    assert proven(jitter=Shortest()).failed(fault("throttled"), 0, 1) == 0.25
    assert proven(jitter=Longest()).failed(fault("throttled"), 0, 1) == 0.5


def test_a_row_of_any_length_has_a_rest():
    patience = proven(RetryPolicy(tries=10**6, backoff_s=1e-3, max_backoff_s=1e-2))
    assert [patience.failed(fault("throttled"), k, k + 1) for k in range(2000)][-1] == 1e-2


# ---- verdicts


@pytest.mark.parametrize("is_proven", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stops_at_once_before_and_after_the_first_answer(kind, is_proven):
    patience = proven() if is_proven else RetryState(RetryPolicy(), Longest())
    patience.failed(fault(kind), 0, 1)
    stops = kind in ("refused", "failed") or (not is_proven and kind in ("unsent", "malformed"))
    assert patience.verdict(fault(kind)) == (f"it was {kind}" if stops else None)


def test_a_teacher_with_answers_in_the_ledger_may_reply_nonsense_once_but_must_be_there():
    patience = RetryState(RetryPolicy(), Longest())
    patience.known = True
    for kind, stops in (("malformed", False), ("unsent", True)):
        patience.failed(fault(kind), 0, 1)
        assert (patience.verdict(fault(kind)) is not None) == stops
    assert patience.slots(8) == 1, "this process has seen no answer yet"


def test_a_teacher_that_has_answered_nothing_may_decline_three_images():
    patience = RetryState(RetryPolicy(), Longest())
    assert [patience.declined() for _ in range(3)] == [False, False, True]


def test_a_teacher_that_has_answered_may_decline_ten_images_in_a_row():
    patience = RetryState(RetryPolicy(), Longest())
    patience.known = True
    assert [patience.declined() for _ in range(9)] == [False] * 9
    patience.succeeded()
    assert [patience.declined() for _ in range(10)] == [False] * 9 + [True]
    lenient = RetryState(RetryPolicy(max_bad_share=1))
    lenient.known = True
    assert not any(lenient.declined() for _ in range(100))


@pytest.mark.parametrize("kind", ["throttled", "unsent"])
def test_patience_is_counted_in_time_where_nothing_is_charged(kind):
    patience = proven(RetryPolicy(tries=1, give_up_after_s=300))
    for when in (1000, 1010, 1299):
        patience.failed(fault(kind), when - 1, when)
        assert patience.verdict(fault(kind)) is None
    patience.failed(fault(kind), 1299, 1300)
    assert patience.verdict(fault(kind)) == (
        f"the teacher has taken no request for 300 s (teacher.retry.give_up_after_s); last: it was {kind}"
    )
    patience.succeeded()
    patience.failed(fault(kind), 1301, 1302)
    assert patience.verdict(fault(kind)) is None, "an answer ends the row"


def test_tries_count_only_what_may_be_charged():
    patience = proven(RetryPolicy(tries=2))
    for k, kind in enumerate(["throttled", "unsent", "lost", "throttled", "throttled"]):
        patience.failed(fault(kind), 2 * k, 2 * k + 1)
        assert patience.verdict(fault(kind)) is None
    patience.failed(fault("lost"), 20, 21)
    assert patience.verdict(fault("lost")) == "the teacher failed 2 times in a row; last: it was lost"


def test_the_same_image_again_and_again_says_nothing_new_of_the_teacher():
    patience = proven(RetryPolicy(tries=2))
    for k in range(10):
        patience.failed(fault("lost"), 2 * k, 2 * k + 1, same=k > 0)
        assert patience.verdict(fault("lost")) is None
    patience.failed(fault("lost"), 30, 31)
    assert patience.verdict(fault("lost")) is not None


@pytest.mark.parametrize(("wait", "stops"), [(None, False), (0, False), (300, False), (300.1, True), (86400, True)])
def test_a_rest_longer_than_the_run_will_wait_stops_it(wait, stops):
    patience = proven(RetryPolicy(max_wait_s=300))
    patience.failed(fault("throttled", wait), 0, 1)
    verdict = patience.verdict(fault("throttled", wait))
    if stops:
        assert verdict == f"it was throttled; it wants to be left alone for {wait:,.0f} s (teacher.retry.max_wait_s)"
    else:
        assert verdict is None


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_so_many_failures_in_a_row_are_the_end(tries):
    patience = proven(RetryPolicy(tries=tries))
    for k in range(tries):
        assert patience.verdict(fault("lost")) is None
        patience.failed(fault("lost"), 2 * k, 2 * k + 1)
    assert patience.verdict(fault("lost")) == f"the teacher failed {tries} times in a row; last: it was lost"
