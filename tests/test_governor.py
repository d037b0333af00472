import math
import random
from collections import deque
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive.budget import MANDATORY, MEMORY, SKIP, WAIT, Budget, together
from adaptive.decision import Mode, Settings, decide
from adaptive.demand import CRITICAL, EVERYONE, PRESSED, Demand, Group, Needs
from adaptive.governor import Governor
from adaptive.slowdown import SHIFT, Tail, beyond, chance, reckoned

COSTS = [0.8e-3 * 1.6**level for level in range(6)]
BATCHED = [{b: cost * b**0.6 for b in (1, 2, 4, 8)} for cost in COSTS]

costs = st.floats(1e-5, 1.0)
completions = st.lists(st.tuples(st.floats(1e-4, 0.1), st.integers(1, 12), costs), max_size=40)


def started(costs=BATCHED, **aims):
    governor = Governor(Settings(**aims))
    governor.init(costs)
    return governor


def extra(governor):
    state = governor.state
    return reckoned(state.slowdown, state.tail, governor.ladder.depth)


def live(governor, completions):
    """Drive a governor through arbitrary decisions and costs; return the time after them."""
    now = 0.0
    for slack, queue, cost in completions:
        level, batch, *_ = governor.decide(slack, queue, now)
        now += cost
        governor.observe(level, batch, cost, now)
    return now


@lru_cache
def settled_state():
    governor, draw, now = started(COSTS), random.Random(3), 0.0
    for _ in range(3000):
        level, batch, *_ = governor.decide(20e-3, 1, now)
        cost = COSTS[level] * math.exp(draw.gauss(0.0, 0.05))
        governor.observe(level, batch, cost, now + cost)
        now += 10e-3
    return governor.state, now


def settled():
    """Return a governor that has seen a machine as fast as at warm-up, and the time."""
    governor = started(COSTS)
    governor.state, now = settled_state()
    return governor, now


@given(completions, st.floats(-0.1, 1.0), st.floats(-0.1, 1.0), st.integers(0, 30))
@settings(max_examples=40)
def test_more_slack_never_means_a_lower_level_that_is_sure_for_all(past, one, other, queue):
    governor = started()
    now, levels = live(governor, past), []
    for slack in sorted((one, other)):
        about = governor.settings, governor.ladder, governor.state, slack, queue, now
        level, batch, sure, _ = decide(*about)[1]
        levels.append(level if sure and batch == queue else MANDATORY)
    assert levels[0] <= levels[1]


@given(completions, st.floats(1e-3, 0.1), st.integers(2, 30))
def test_some_have_a_higher_level_only_where_what_is_left_still_has_what_all_would_have(
    past, slack, queue
):
    governor = started()
    now = live(governor, past)
    about = governor.settings, governor.ladder, governor.state, slack, queue, now
    (after, plain), (_, found) = decide(*about), decide(*about, parts=True)
    if not plain.sure or found == plain:
        assert found == plain
        return
    governor.state = after
    assert found.sure
    assert found.level > plain.level
    assert found.batch < plain.batch
    taken, left = governor.predict(found.level, found.batch)[0], queue - found.batch
    largest = governor.ladder.sizes[-1]
    rest = -(-left // largest) * governor.predict(plain.level, min(left, largest))[0]
    # One margin is that of both.
    both = beyond(taken + rest, reckoned(after.slowdown, after.tail, governor.ladder.depth))
    assert both <= (slack - 0.5e-3) * (1 + 1e-9)


def test_where_one_call_at_the_highest_level_does_not_fit_for_all_two_calls_may():
    governor, (_, now) = Governor(), settled_state()
    governor.init([{b: cost * b**0.95 for b in (1, 2, 4, 8)} for cost in COSTS])
    governor.state, _ = settled_state()
    first, second = (governor.predict(level, 4)[0] for level in (5, 4))
    slack = 0.5e-3 + beyond(first + second, extra(governor)) + 1e-4
    assert governor.at_most(4, 8) < slack - 0.5e-3 < governor.at_most(5, 8)
    assert governor.decide(slack, 8, now)[:3] == (5, 4, True)
    governor.observe(5, 4, first, now + first)
    level, batch, sure, _ = governor.decide(slack - first, 4, now + first)
    assert level >= 4
    assert batch == 4
    assert sure


@given(completions, st.floats(-0.1, 1.0), st.integers(0, 30))
@settings(max_examples=40)
def test_nothing_is_sure_whose_cost_at_the_tail_exceeds_the_slack(past, slack, queue):
    governor = started()
    now = live(governor, past)
    before = Governor(governor.settings)
    before.ladder, before.state = governor.ladder, governor.state
    level, batch, sure, _ = governor.decide(slack, queue, now)
    if level >= 0:
        typical, safe = before.predict(level, batch)
        assert (safe if sure else typical) <= (slack - 0.5e-3) * (1 + 1e-9)
    else:
        assert not sure
    assert batch <= queue


@given(completions)
@settings(max_examples=40)
def test_the_same_past_gives_the_same_state(past):
    one, other = started(), started()
    live(one, past)
    live(other, past)
    assert one.state == other.state


@given(st.lists(st.floats(0.0, 1e9) | st.just(math.inf) | st.just(math.nan), max_size=30))
@settings(max_examples=40)
def test_no_cost_however_odd_makes_the_state_other_than_finite(odd):
    governor = started(COSTS)
    for n, cost in enumerate(odd):
        governor.decide(0.02, 1, 0.01 * n)
        governor.observe(2, 1, cost, 0.01 * n)
    assert all(math.isfinite(value) for value in governor.snapshot().values())


def test_a_quiet_machine_reaches_the_highest_level_that_fits():
    governor, now = settled()
    assert governor.decide(20e-3, 1, now).level == 5  # 8.4 ms
    typical, safe = governor.predict(5, 1)
    assert typical == pytest.approx(COSTS[5], rel=0.1)
    assert safe < 2 * COSTS[5]


def test_a_threefold_step_is_followed_within_three_completions_and_left_again_later():
    governor, now = settled()
    before, levels = governor.decide(20e-3, 1, now).level, []
    for _ in range(4):
        level, batch, *_ = governor.decide(20e-3, 1, now)
        levels.append(level)
        governor.observe(level, batch, 3 * COSTS[level], now)
        now += 20e-3
    fits = max(level for level in range(6) if 3 * COSTS[level] < 19e-3)
    assert levels[0] == before == 5
    assert max(levels[1:]) < fits + 1
    assert governor.state.slowdown.mean == pytest.approx(math.log(3), abs=0.15)
    calls = 0
    while calls < 200:
        level, batch, *_ = governor.decide(20e-3, 1, now)
        if level == before:
            break
        governor.observe(level, batch, COSTS[level], now)
        now, calls = now + 10e-3, calls + 1
    assert 2 <= calls <= 50  # slowly, yet within half a second


@pytest.mark.parametrize("times", [3.0, 10.0, 100.0])
def test_a_single_spike_leaves_estimate_and_level_as_they_were(times):
    governor, now = settled()
    mean, level = governor.state.slowdown.mean, governor.decide(20e-3, 1, now).level
    governor.observe(level, 1, times * COSTS[level], now)
    lowered = governor.decide(20e-3, 1, now)
    assert lowered.level < level or not lowered.sure  # it might be the first of a step
    for _ in range(4):
        now += 10e-3
        used, batch, *_ = governor.decide(20e-3, 1, now)
        governor.observe(max(used, 0), 1, COSTS[max(used, 0)], now)
    assert governor.state.slowdown.mean == pytest.approx(mean, abs=0.03)
    assert governor.decide(20e-3, 1, now).level == level


def test_when_all_is_mandatory_what_the_model_does_then_shows_that_the_machine_has_recovered():
    governor, now = settled()
    times, back = 60.0, None
    for n in range(700):
        times = 60.0 if n < 500 else 1.0
        level, batch, *_ = governor.decide(20e-3, 1, now)
        assert not 10 < n < 500 or level == -1
        governor.observe(max(level, 0), batch, times * COSTS[max(level, 0)], now)
        if level == 5 and n >= 500 and back is None:
            back = n
        now += 10e-3
    assert back is not None
    assert back - 500 < 20


def test_what_usually_would_fit_is_tried():
    governor, now = settled()
    typical, safe = governor.predict(0, 1)
    assert governor.decide(0.5e-3 + 1.01 * safe, 1, now)[:3] == (0, 1, True)
    assert governor.decide(0.5e-3 + 1.01 * typical, 1, now)[:3] == (0, 1, False)
    assert governor.decide(0.5e-3 + 0.99 * typical, 1, now)[:3] == (-1, 1, False)
    # What is tried in vain is no reason for a wider margin.
    margin = governor.predict(0, 1)[1] / governor.predict(0, 1)[0]
    for _ in range(30):
        governor.decide(0.5e-3 + 1.01 * typical, 1, now)
        governor.observe(0, 1, 1.05 * typical, now)
        now += 10e-3
    assert governor.predict(0, 1)[1] / governor.predict(0, 1)[0] <= margin


def test_where_nothing_is_sure_the_level_is_tried_that_promises_most():
    governor, now = settled()
    wide = governor.state.tail._replace(threshold=0.9, excess=0.9)  # a tenfold call is no wonder
    governor.state = governor.state._replace(tail=wide)
    worths = governor.ladder.gains
    for level in range(len(COSTS)):
        slack = 0.5e-3 + 1.2 * governor.predict(level, 1)[0]
        found = governor.decide(slack, 1, now)
        assert not found.sure
        promised = []
        for one, gain in enumerate(worths):
            usual, budget = governor.predict(one, 1)[0], slack - 0.5e-3
            promised.append(gain * chance(wide, budget, usual) if budget >= usual else 0.0)
        assert found.level == promised.index(max(promised))
    assert found.level >= 4


@given(completions, st.lists(st.floats(0.0, 0.05), min_size=2, max_size=12))
def test_where_not_all_can_be_had_those_are_taken_that_can(past, slacks):
    governor = started()
    now = live(governor, past)
    dues = sorted(now + slack for slack in slacks)
    governor.dues = lambda: dues
    before = governor.state
    level, batch, sure, after = governor.decide(dues[0] - now, len(dues), now)
    if after == -math.inf:
        return
    governor.state = before  # a spike is held for so many decisions
    assert sure
    assert level == 0
    ready = now + 0.5e-3 + governor.predict(0, batch)[1]
    in_time = [due for due in dues if due >= after][:batch]
    assert all(due >= ready - 1e-9 for due in in_time)
    # No other size gives more of them; or where not even the cheapest level usually is in time for
    # all, and only there may some be given up, more for the time that it takes.
    overloaded = governor.predict(0, min(len(dues), 8))[0] > dues[0] - now - 0.5e-3
    assert overloaded or after == dues[0]

    def had(size):
        cost = governor.predict(0, size)[1]
        in_time = sum(due >= now + 0.5e-3 + cost for due in dues)
        if not overloaded:
            return size if in_time == len(dues) else 0
        return min(in_time, size) / cost

    whole = min(len(dues), 8)
    sizes = [size for size in (1, 2, 4, 8) if size < whole] + [whole]
    size = next(size for size in sizes if size >= batch)
    assert had(size) >= max(map(had, sizes)) * (1 - 1e-9)


def test_nobody_is_given_up_while_the_cheapest_level_usually_is_in_time_for_all():
    governor = started()
    governor.state, now = settled_state()
    typical, safe = governor.predict(0, 8)
    later = [now + 0.5e-3 + 1.1 * safe] * 6  # of these a call for all would be sure
    soon = [now + 0.5e-3 + 1.001 * typical] * 2
    governor.dues = lambda: soon + later
    found = governor.decide(soon[0] - now, 8, now)
    assert found == (0, 8, False, -math.inf)
    soon[:] = [now + 0.5e-3 + 0.99 * typical] * 2
    found = governor.decide(soon[0] - now, 8, now)
    assert found == (0, 8, True, later[0])


def test_a_chance_is_a_law_that_meets_its_tail():
    tail = Tail(threshold=0.4, excess=0.2)
    for typical in (1e-4, 1e-3, 1e-1):

        def held(room, typical=typical):
            return chance(tail, (typical + SHIFT) * math.exp(room) - SHIFT, typical)

        assert held(0.0) == pytest.approx(0.5)
        assert held(0.4) == pytest.approx(0.98)
        assert held(0.4 - 1e-9) == pytest.approx(0.98)
        assert held(0.4 + 0.2 * math.log(20)) == pytest.approx(0.999)
        chances = [held(0.01 * n) for n in range(-4, 200)]
        assert chances == sorted(chances)


def test_an_overload_that_nothing_could_meet_leaves_no_margin_behind():
    governor, now = settled()
    draw = random.Random(5)
    for _ in range(1000):
        level, batch, *_ = governor.decide(20e-3, 1, now)
        times = draw.choice((20.0, 60.0, 200.0))
        governor.observe(max(level, 0), batch, times * COSTS[max(level, 0)], now)
        now += 10e-3
    for _ in range(500):
        level, batch, *_ = governor.decide(20e-3, 1, now)
        governor.observe(max(level, 0), batch, COSTS[max(level, 0)], now)
        now += 10e-3
    assert governor.decide(20e-3, 1, now).level >= 4


def test_a_backlog_lowers_the_level_but_never_below_the_cheapest_that_fits():
    governor, now = settled()
    peek = [
        decide(governor.settings, governor.ladder, governor.state, 20e-3, queue, now)[1]
        for queue in (1, 2, 4, 8, 16, 200)
    ]
    levels = [decision.level for decision in peek]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 5
    assert levels[-1] == 0


def test_a_batch_between_those_measured_costs_what_lies_between():
    governor = Governor()
    governor.init([{2: 1e-3, 8: 4e-3}, {2: 2e-3, 8: 8e-3}])
    for level in (0, 1):
        costs = [
            (level + 1) * cost for cost in (1e-3, 1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 3.5e-3, 4e-3)
        ]
        got = [governor.predict(level, batch)[0] for batch in range(1, 10)]
        assert got == pytest.approx([*costs, costs[-1]])  # what is more goes in several calls
    # Five of them in what they nominally take: as fast as ever.
    governor.decide(1.0, 5, 0.0)
    governor.observe(1, 5, 5e-3, 0.1)
    assert governor.state.slowdown.mean == pytest.approx(0.0, abs=1e-9)


def test_a_batch_takes_all_that_wait_up_to_the_largest_batch():
    governor = started()
    assert [governor.decide(1.0, queue, 0.0).batch for queue in (0, 1, 3, 8, 50)] == [0, 1, 3, 8, 8]


def test_fewer_are_taken_when_not_even_the_cheapest_level_fits_for_all():
    governor = started([{1: 1e-3, 8: 8e-3}, {1: 2e-3, 8: 16e-3}])
    assert governor.decide(5e-3, 8, 0.0)[:3] == (0, 1, True)


def test_without_slack_the_answer_is_the_mandatory_one():
    governor = started()
    governor.decide(1.0, 1, 0.0)
    assert governor.decide(0.4e-3, 3, 0.0)[:3] == (-1, 3, False)  # less than the guard
    assert governor.decide(-1.0, 3, 0.0)[:3] == (-1, 3, False)
    assert governor.decide(1.0, 0, 0.0)[:3] == (-1, 0, False)


def test_failures_cap_the_level_and_the_cap_is_lifted_by_time_and_a_good_call():
    governor, now = settled()
    governor.failed("not_finite", now)
    assert (governor.mode, governor.cause) == (Mode.DEGRADED, "not_finite")
    assert governor.decide(20e-3, 1, now).level == 0
    governor.failed("crashed", now)
    assert (governor.mode, governor.cause) == (Mode.FALLBACK, "crashed")
    for later in (0.9, 1.1):  # twice the first back-off is one second
        assert governor.mode == Mode.FALLBACK
        assert governor.decide(20e-3, 1, now + later).level == -1
        governor.observe(0, 1, COSTS[0], now + later + 0.01)
    assert governor.mode == Mode.DEGRADED
    assert governor.decide(20e-3, 1, now + 1.3).level == 0
    governor.decide(20e-3, 1, now + 2.3)
    assert (governor.mode, governor.cause) == (Mode.NORMAL, "")


def test_learning_needs_a_gap_that_holds_it_at_the_tail_and_a_trusted_machine():
    governor, now = settled()
    slow = math.exp(governor.state.slowdown.mean)
    step = beyond(1e-3 * slow, extra(governor))
    top = len(COSTS) - 1
    assert governor.state.level == top  # which the next sample is to have
    after = 0.5e-3 + governor.at_most(top, 1)
    assert governor.may_learn(after + 1.01 * step, 0, 1e-3)
    assert not governor.may_learn(after + 0.99 * step, 0, 1e-3)
    assert not governor.may_learn(0.0, 0, 1e-9)
    governor.failed("crashed", now)
    assert not governor.may_learn(1.0, 0, 1e-3)


def test_a_learning_step_that_stood_still_is_not_the_last():
    governor, _ = settled()
    cost = 1e-3
    for lap in (0.5, *[1e-3] * 30):
        cost = governor.step_cost(cost, lap)
        assert cost <= 1.1e-3
    assert cost == pytest.approx(1e-3, rel=0.05)


def test_what_comes_during_a_step_is_known_after_a_restart():
    governor = started()
    live(governor, [(0.1, 6, 5e-3)] * 100)
    other = started()
    other.restore(governor.snapshot())
    assert other.state.batch == governor.state.batch > 5.0


def test_what_waits_and_what_comes_during_a_learning_step_still_gets_the_highest_level():
    governor = started()
    top, now = len(COSTS) - 1, 0.0
    assert not governor.may_learn(1.0, 1, 1e-3)  # nobody knows what comes meanwhile
    for _ in range(300):  # two samples each 10 ms
        governor.decide(0.1, 2, now)
        governor.observe(top, 2, BATCHED[top][2], now)
        now += 10e-3
    # Three that wait, two that always come with the next, two of each 10 ms that the step takes.
    slow = math.exp(governor.state.slowdown.mean)
    step = beyond(10e-3 * slow, extra(governor))
    after = 0.5e-3 + step + governor.at_most(top, 3 + 4)
    assert governor.may_learn(1.001 * after, 3, 10e-3)
    assert not governor.may_learn(0.999 * after, 3, 10e-3)
    assert not governor.may_learn(1.0, 5, 10e-3)  # so many no call takes


@given(completions)
@settings(max_examples=30)
def test_a_restored_governor_predicts_as_the_one_that_was_saved(past):
    governor, other = started(), started()
    live(governor, past)
    other.restore(governor.snapshot())
    saved = governor.state.slowdown._replace(hold_left=0)
    governor.state = governor.state._replace(slowdown=saved)
    assert other.predict(3, 4) == pytest.approx(governor.predict(3, 4))
    assert other.snapshot().keys() == governor.snapshot().keys()


def test_a_snapshot_of_something_else_is_refused():
    with pytest.raises(ValueError, match="must hold .*slowdown.mean.*got .'a'."):
        started().restore({"a": 1.0})


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([], "at least one level"),
        ([{}], "at least one level"),
        ([1e-3, 0.0], "level 1 at batch 1 must be a positive"),
        ([1e-3, math.nan], "level 1 at batch 1 must be a positive"),
        ([{1: 1e-3}, {1: 1e-3, 2: 2e-3}], "same batch sizes"),
    ],
)
def test_costs_that_are_none_are_refused(costs, message):
    with pytest.raises(ValueError, match=message):
        started(costs)


@pytest.mark.parametrize(
    "aims",
    [{"epsilon": 0.0}, {"epsilon": 0.5}, {"guard_ms": -1.0}, {"utilisation": 0.0}]
    + [{"recover_ms": 1e9}],
)
def test_settings_that_make_no_sense_are_refused_by_name(aims):
    with pytest.raises(ValueError, match=f"governor.{next(iter(aims))} must be"):
        Settings(**aims)


def simulate(governor, seed, slowdown, *, samples=4000, bursts=0.0, spikes=0.0):
    """Serve seeded arrivals at 100 Hz with deadlines of 20 ms on a virtual clock.

    Returns:
        The share of answers that were sure to be refined and came too late, and the level of each
        answer.
    """
    draw, arrivals, now = random.Random(seed), deque(), 0.0
    while len(arrivals) < samples:
        now += 10e-3 * draw.uniform(0.8, 1.2)
        arrivals.extend([now] * (draw.randint(4, 10) if draw.random() < bursts else 1))
    now, queue, missed, levels = 0.0, deque(), 0, []
    while arrivals or queue:
        if not queue:
            now = max(now, arrivals[0])
        while arrivals and arrivals[0] <= now:
            queue.append(arrivals.popleft())
        level, batch, sure, _ = governor.decide(queue[0] + 20e-3 - now, len(queue), now)
        heads = [queue.popleft() for _ in range(batch)]
        ran = max(level, 0)
        cost = BATCHED[ran][min(b for b in BATCHED[0] if b >= batch)]
        cost *= slowdown(now) * math.exp(draw.gauss(0.0, 0.08))
        cost *= draw.paretovariate(1.5) if draw.random() < spikes else 1.0
        now += cost
        governor.observe(ran, batch, cost, now)
        late = sum(now > head + 20e-3 for head in heads)
        missed += late if sure else 0
        levels += [-1] * late + [level] * (len(heads) - late)
    return missed / len(levels), levels


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("slowdown", "storms"),
    [
        (lambda t: 1.0, {}),
        (lambda t: 3.0 if 20 < t < 30 else 1.0, {}),
        (lambda t: 3.0 if 20 < t < 30 else 1.0, {"bursts": 0.03}),
        (lambda t: 60.0 if 20 < t < 25 else 1.0, {}),
        (lambda t: 2.5 if int(3.3 * t) % 7 == 0 else 1.0, {}),
        (lambda t: 1.0, {"spikes": 0.003}),
    ],
    ids=["quiet", "step", "step and bursts", "nothing fits for 5 s", "gusts", "heavy tail"],
)
def test_deadlines_hold_in_simulated_storms_and_quality_stays_above_the_small_level(
    seed, slowdown, storms
):
    missed, levels = simulate(started(), seed, slowdown, **storms)
    assert missed <= 0.005
    assert sum(levels) / len(levels) > 2.5


groups = st.builds(Group, st.floats(-1e-3, 0.1), st.integers(1, 12))
nobody = st.just(Group())


def among(governor, slack, queue, now, demand):
    before = governor.state
    decision, whom = governor.decide_among(slack, queue, now, demand)
    after, governor.state = governor.state, before
    return after, decision, whom


@given(completions, st.floats(-1e-3, 0.1), st.integers(1, 40))
def test_where_all_are_equal_nothing_is_decided_otherwise(before, slack, queue):
    governor = started()
    now = live(governor, before)
    plain = decide(governor.settings, governor.ladder, governor.state, slack, queue, now)
    assert among(governor, slack, queue, now, Demand()) == (*plain, EVERYONE)


@given(
    completions, st.floats(-1e-3, 0.1), st.integers(12, 40), groups | nobody, groups | nobody,
    st.floats(-1e-3, 0.1), st.booleans(),
)  # fmt: skip
def test_others_get_the_cheapest_level_at_most_while_critical_streams_have_less_than_the_highest(
    before, slack, queue, critical, pressed, room, strained
):
    governor = started()
    now, top = live(governor, before), len(governor.ladder.log_costs[0]) - 1
    demand = Demand(critical, pressed, room, strained)
    _, decision, whom = among(governor, slack, queue, now, demand)
    level, batch, sure, after = decision
    if critical.size and whom == EVERYONE:
        assert (level, batch, sure) == (top, queue, True)
    if not critical.size and strained:
        assert level <= 0
    if whom == PRESSED:
        assert pressed.size
        assert level <= 0
        assert batch <= pressed.size
    if whom == CRITICAL:
        assert batch <= critical.size
    if not critical.size and level > 0 and room < slack:
        assert sure
        # It leaves the room that was asked for.
        assert governor.predict(level, batch)[1] <= room - governor.ladder.guard + 1e-12


@given(completions, st.integers(1, 12), groups | nobody, st.floats(0, 0.1), st.floats(0, 0.05))
def test_more_slack_never_means_a_lower_level_for_critical_streams(
    before, size, pressed, one, more
):
    governor = started()
    now, levels = live(governor, before), []
    for slack in (one, one + more):
        demand = Demand(Group(slack, size), pressed, strained=True)
        # The others have no time: it is not about them.
        _, decision, whom = among(governor, 0.0, 40, now, demand)
        whole = whom == CRITICAL and decision.sure and decision.batch == size
        levels.append(decision.level if whole else -1)
    assert levels[0] <= levels[1]


@given(completions, groups, st.floats(0.0, 0.1))
def test_a_promise_is_kept_before_critical_streams_get_more_than_the_cheapest(
    before, pressed, slack
):
    governor = started()
    now = live(governor, before)
    demand = Demand(Group(slack, 4), pressed)
    _, decision, whom = among(governor, 0.0, 40, now, demand)
    if whom == CRITICAL and decision.sure and decision.level > 0:
        spent = governor.predict(decision.level, decision.batch)[1]
        assert spent + governor.predict(0, pressed.size)[1] <= pressed.slack + 1e-12


def test_others_are_kept_low_for_a_while_after_critical_streams_had_less_than_the_highest():
    needs = Needs(top=2, relief=0.5, critical=1, promised=1)

    def strained(now, level=None):
        critical = Group(0.1, 1) if level is not None else Group()
        demand = needs.demand(critical, Group(), 0.05, lambda level, size: 1e-3, now)
        if level is not None:
            needs.decided(demand, level, now)
        return demand.strained

    assert not strained(0.0)
    strained(1.0, level=1)
    assert strained(1.4)
    needs.decided(Demand(), 2, 1.45)  # others' calls say nothing about it
    assert strained(1.49)
    assert not strained(1.6)
    strained(2.0, level=0)
    assert strained(2.1, level=2)
    assert not strained(2.2)


def test_room_for_those_that_may_come_is_by_what_calls_take_now_not_when_they_last_came():
    needs, nobody, each = Needs(top=2, relief=0.5, critical=0, promised=3), Group(), [10e-3]

    def takes(level, size):
        assert level == 0
        return each[0] * size

    slow = needs.demand(nobody, Group(0.1, 2), 0.05, takes, 0.0)
    assert slow.room == pytest.approx(0.05 - 2 * 10e-3)
    each[0] = 1e-3
    # Another bank decides: what it takes there is nothing to these.
    later = needs.demand(nobody, nobody, 0.05, lambda level, size: 1.0, 0.1)
    assert later.room == pytest.approx(0.05 - 2 * 1e-3)
    # After a stall many wait of each; so many will not come at once again.
    needs.demand(nobody, Group(0.1, 200), 0.05, takes, 0.2)
    assert needs.demand(nobody, nobody, 0.05, takes, 0.3).room == pytest.approx(0.05 - 3e-3)


def priced(price):
    """Return a governor in whose agent a full answer has a price, and the time."""
    governor = started()
    governor.budget = Budget(lambda: 0.0)
    governor.budget.limit("cpu", 1.0)
    governor.budget.look(1.0)
    governor.budget.price = price  # until a later look
    return governor, 1.0


def test_critical_and_pressed_streams_pay_no_price_until_others_buy_nothing():
    ceiling, top = started().offer.ceiling, len(COSTS) - 1
    governor, now = priced(0.99 * ceiling)
    # There is time for one call, not for more, so that nobody waits for company.
    assert governor.decide_among(12e-3, 4, now, Demand())[0].level < 0
    decision, whom = governor.decide_among(12e-3, 4, now, Demand(Group(12e-3, 1)))
    assert (decision.level, decision.batch, whom) == (top, 1, CRITICAL)
    decision, whom = governor.decide_among(1e-3, 4, now, Demand(pressed=Group(2e-3, 1)))
    assert (decision.level, decision.batch, whom) == (0, 1, PRESSED)
    # Where there is time they wait for company, as all do.
    decision, whom = governor.decide_among(1.0, 4, now, Demand(Group(1.0, 1)))
    assert (decision.level, whom) == (WAIT, CRITICAL)
    assert governor.wait > 0.1
    governor, now = priced(100.0 * ceiling)
    assert governor.decide_among(1e-3, 4, now, Demand(Group(1e-3, 1)))[0].level == SKIP
    governor.budget = None
    assert governor.decide_among(1.0, 4, now, Demand(Group(1.0, 1)))[1] == EVERYONE


@given(st.floats(0.0, 3.0), st.integers(1, 4), st.integers(1, 4))
def test_others_are_taken_along_where_that_is_worth_more_than_what_they_would_buy(log, few, others):
    governor, top = started(), len(COSTS) - 1
    worths, costs, price = governor.offer.worths[1:], governor.offer.costs, math.expm1(log)

    def value(level):
        return others * worths[level] - price * costs[others - 1][level]

    alone = max([-MEMORY * others, *map(value, range(top + 1))])
    along = others * worths[top] - price * (costs[few + others - 1][top] - costs[few - 1][top])
    if abs(along - alone) > 1e-9:
        assert together(governor.offer, few, others, price) == (along > alone)
    assert together(governor.offer, few, others, 0.0)


def test_who_is_taken_along_with_critical_streams_has_their_level():
    top, taken = len(COSTS) - 1, set()
    for slack, price in product((15e-3, 20e-3, 30e-3), np.geomspace(0.01, 10, 40).tolist()):
        governor, now = priced(price)
        decision, whom = governor.decide_among(slack, 2, now, Demand(Group(slack, 1)))
        if decision.level == WAIT:
            continue
        assert decision.level == top
        taken.add((decision.batch, whom))
    assert taken == {(2, EVERYONE), (1, CRITICAL)}
