"""Budgets: what is spent in the long run, what is bought with it, and that nothing is ever stopped.

Time is virtual, and what things cost is made up.
"""

import math
import random
from bisect import bisect_right
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive.budget import (
    MANDATORY,
    MEMORY,
    SKIP,
    WAIT,
    WORTH_STEP,
    Budget,
    Window,
    choose,
    offer,
)
from adaptive.decision import Settings
from adaptive.governor import Governor
from adaptive.ladder import WORTH_FULL, WORTH_MANDATORY, ladder

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def costs(cheapest, ratio, levels=3):
    """What calls cost, of levels that are so many times as dear as the one before."""
    return [{b: cheapest * ratio**v * b**0.7 for b in SIZES} for v in range(levels)]


class Agent:
    """A governor in virtual time, with a model and a load beside it."""

    def __init__(self, table, base=0.0, worths=()):
        self.table, self.base = table, base
        self.governor = Governor()
        self.governor.init(table, worths)
        self.governor.budget = self.budget = Budget(lambda: self.model + base * self.now)
        self.now = self.model = 0.0
        self.levels, self.spans = [], []  # of answers; when the model was at work

    def spent(self):
        return self.model + self.base * self.now

    def live(self, length, rate, draw, deadline=50e-3):
        """Take samples at a rate until so much time has passed."""
        until, queue, next_one = self.now + length, [], self.now
        while self.now < until:
            while next_one <= self.now:
                queue.append(next_one)
                next_one += draw.expovariate(rate)
            if not queue:
                self.now = next_one
                continue
            level, batch, *_ = self.governor.decide(
                queue[0] + deadline - self.now, len(queue), self.now
            )
            if level == WAIT:
                self.now += self.governor.wait
                continue
            self.levels += [level] * batch
            del queue[:batch]
            if level == SKIP:
                continue
            row = self.table[max(level, 0)]
            cost = np.interp(batch, SIZES, [row[b] for b in SIZES]).item()
            cost *= math.exp(draw.gauss(0.0, 0.05))
            self.spans.append((self.now, self.now + cost))
            self.now, self.model = self.now + cost, self.model + cost
            self.governor.observe(max(level, 0), batch, cost, self.now)


def full(table, rate, length=10.0, seed=1):
    """What the model takes of a core where nothing is limited."""
    agent = Agent(table)
    agent.live(length, rate, random.Random(seed))
    return agent.spent() / agent.now


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("ratio", [1.3, 2.0, 6.0])
@pytest.mark.parametrize("cheapest", [10e-6, 150e-6])
def test_in_the_long_run_what_is_spent_is_the_budget(cheapest, ratio, share):
    table, rate, length = costs(cheapest, ratio), 100.0, 25.0
    whole = full(table, rate, length)
    agent = Agent(table, base=0.1 * whole)
    wanted = (0.1 + share) * whole
    agent.budget.limit("cpu", wanted)
    agent.live(length, rate, random.Random(1))
    assert agent.spent() <= 1.02 * wanted * agent.now
    # Less is spent only where that buys all that can be had, once samples share their calls.
    if agent.spent() < 0.98 * wanted * agent.now:
        assert agent.levels.count(2) >= 0.98 * len(agent.levels)


def test_a_budget_that_is_halved_is_kept_before_and_after():
    table = costs(200e-6, 2.0)
    agent, draw = Agent(table, base=0.02), random.Random(1)
    whole = full(table, 300.0)
    agent.budget.limit("cpu", 0.02 + 0.5 * whole)
    agent.live(15.0, 300.0, draw)
    before = agent.spent()
    assert before == pytest.approx((0.02 + 0.5 * whole) * agent.now, rel=0.02)
    agent.budget.limit("cpu", 0.01 + 0.25 * whole)
    agent.live(15.0, 300.0, draw)
    assert agent.spent() - before == pytest.approx((0.01 + 0.25 * whole) * 15.0, rel=0.02)


def test_what_is_bought_is_nearly_the_best_that_the_budget_could_buy():
    # Of one sample at a time the best mean worth for a mean cost lies on the concave hull.
    table, worths = costs(200e-6, 2.0), (0.361, 0.502, 0.711)
    values, dear = (0.0, *worths), (0.0, *(row[1] for row in table))
    for share in (0.3, 0.5, 0.8):
        agent = Agent(table, worths=worths)
        budget = share * 100.0 * dear[-1]
        agent.budget.limit("cpu", budget)
        agent.live(20.0, 100.0, random.Random(2))
        cost = budget / (len(agent.levels) / agent.now)
        best = max(
            values[i] + (values[j] - values[i]) * (cost - dear[i]) / (dear[j] - dear[i])
            for i in range(4)
            for j in range(4)
            if dear[i] <= cost < dear[j]
        )
        got = sum(values[level + 1] if level >= 0 else values[0] for level in agent.levels)
        assert got / len(agent.levels) >= 0.97 * best


def test_a_budget_below_what_the_agent_itself_takes_leaves_everything_out_and_no_debt_for_ever():
    agent, draw = Agent(costs(200e-6, 2.0), base=0.3), random.Random(3)
    agent.budget.limit("cpu", 0.2)
    agent.live(20.0, 100.0, draw)
    assert agent.levels[-1000:].count(SKIP) == 1000
    agent.budget.limit("cpu", 0.9)
    agent.live(20.0, 100.0, draw)
    assert agent.levels[-500:] == [2] * 500


@pytest.mark.parametrize("base", [0.0, 0.15])
@pytest.mark.parametrize("cheapest", [20e-6, 400e-6, 4e-3])
@pytest.mark.parametrize("rate", [100.0, 2000.0])
def test_no_period_whenever_it_begins_takes_more_than_the_quota(cheapest, rate, base):
    quota, period = 50e-3, 0.1
    agent = Agent(costs(cheapest, 2.0), base)
    agent.budget.stop_at(quota, period)
    agent.live(4.0, rate, random.Random(4))
    starts, before = [start for start, _ in agent.spans], [0.0]
    for start, end in agent.spans:
        before.append(before[-1] + end - start)

    def spent(time):
        n = bisect_right(starts, time)
        inside = max(agent.spans[n - 1][1] - time, 0.0) if n else 0.0
        return before[n] - inside + base * max(time, 0.0)

    # A period in which most is spent ends with a call, or begins with one.
    for start, end in agent.spans:
        assert spent(end) - spent(end - period) <= quota
        if start >= period:  # before that the load beside the model is not known
            assert spent(start + period) - spent(start) <= quota
    assert agent.model > 0.0


def test_in_a_quota_a_level_goes_before_a_batch_and_no_call_takes_more_than_half():
    governor = Governor()
    governor.init([{1: 1e-3, 32: 10e-3}, {1: 3e-3, 32: 30e-3}])
    governor.budget = Budget(lambda: 0.0)
    governor.budget.stop_at(50e-3, 0.1)
    governor.decide(1.0, 1, 0.0)
    governor.observe(0, 1, 1e-3, 0.01)
    assert governor.decide(1.0, 32, 0.02)[:2] == (0, 32)
    assert governor.decide(1.0, 16, 0.03)[:2] == (1, 16)
    governor.init([{1: 3e-3, 32: 30e-3}])
    governor.observe(0, 1, 3e-3, 0.04)
    assert governor.decide(1.0, 32, 0.05)[:2] == (0, 1)  # of the sizes that were measured


def test_where_nothing_is_limited_decisions_are_those_of_a_governor_without_budget():
    draw, table = random.Random(5), costs(400e-6, 2.0)
    plain, other = Governor(), Governor()
    plain.init(table)
    other.init(table)
    other.budget = Budget(lambda: 0.0)
    for n in range(2000):
        slack, queue, now = draw.uniform(0.0, 30e-3), draw.randint(0, 20), 10e-3 * n
        one, same = (g.decide(slack, queue, now) for g in (plain, other))
        assert one == same
        cost = draw.lognormvariate(-7, 1)
        plain.observe(one.level, max(one.batch, 1), cost, now + cost)
        other.observe(one.level, max(one.batch, 1), cost, now + cost)
    assert plain.state == other.state


tables = st.lists(st.floats(1e-6, 1e-1), min_size=1, max_size=6).map(
    lambda row: [{1: c, 8: 3 * c} for c in row]
)


@given(tables, st.floats(0, 100), st.floats(0, 100), st.integers(1, 8), st.integers(-1, 5))
@settings(max_examples=200)
def test_a_higher_price_never_buys_a_higher_level(table, one, other, batch, top):
    made = offer(ladder(table, 0.5, 1e-3))
    top = min(top, len(table) - 1)
    low, high = (choose(made, batch, top, price) for price in sorted((one, other)))
    assert SKIP <= high <= low <= top


@given(tables, st.integers(0, 5))
@settings(max_examples=50)
def test_a_level_that_costs_something_is_bought_for_nothing(table, top):
    worths = [WORTH_MANDATORY + 0.1 * (level + 1) for level in range(len(table))]
    made = offer(ladder(table, 0.5, 1e-3), worths)
    top = min(top, len(table) - 1)
    assert choose(made, 1, top, 0.0) == top


@given(tables)
@settings(max_examples=50)
def test_worths_that_are_not_known_rise_with_the_cost_from_the_mandatory_answer_to_a_full_one(
    table,
):
    got = offer(ladder(table, 0.5, 1e-3)).worths
    assert got[0] == WORTH_MANDATORY
    assert got[-1] == pytest.approx(WORTH_FULL)
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(got))


def test_what_has_no_time_goes_through_the_cheapest_level_unless_that_is_too_dear():
    made = offer(ladder([1e-3, 2e-3], 0.5, 1e-3), [0.4, 0.7])
    assert choose(made, 1, MANDATORY, 0.0) == MANDATORY
    dear = (WORTH_MANDATORY + MEMORY) / 0.5  # it costs half of a full answer
    assert choose(made, 1, MANDATORY, 0.99 * dear) == MANDATORY
    assert choose(made, 1, MANDATORY, 1.01 * dear) == SKIP


def test_gradient_steps_are_taken_while_they_are_worth_their_price():
    table, rate = costs(400e-6, 2.0), 100.0
    agent = Agent(table)
    agent.budget.limit("cpu", 10.0)
    agent.live(5.0, rate, random.Random(6))
    assert agent.governor.may_learn(1.0, 0, 1e-3)
    agent.budget.limit("cpu", 0.5 * full(table, rate))
    agent.live(5.0, rate, random.Random(6))
    dear = WORTH_STEP / agent.budget.price * agent.governor.ladder.costs[0][-1]  # [s]
    assert 0.0 < dear < 0.1
    assert agent.governor.may_learn(1.0, 0, 0.99 * dear)
    assert not agent.governor.may_learn(1.0, 0, 1.01 * dear)


def test_learning_leaves_room_in_the_period_of_a_quota():
    governor, spent = Governor(), [0.0]
    governor.init([1e-4, 2e-4])
    governor.budget = Budget(lambda: spent[0])
    governor.budget.stop_at(10e-3, 0.1)
    assert governor.may_learn(1.0, 0, 9e-3)
    assert not governor.may_learn(1.0, 0, 11e-3)


@pytest.mark.parametrize("name", ["cpu", "quota"])
def test_only_a_quota_does_not_become_cheaper_while_calls_wait_for_it(name):
    spent = [0.0]
    budget = Budget(lambda: spent[0])
    if name == "quota":
        budget.stop_at(50e-3, 0.1)
    else:
        budget.limit(name, 0.5)
    budget.look(0.0)
    spent[0] = 0.2
    dear = budget.look(0.1)
    budget.stopped = True
    waited = budget.look(0.12)
    assert (waited == dear) == (name == "quota")
    assert budget.look(0.2) < waited


@given(st.lists(st.tuples(st.floats(1e-3, 0.2), st.floats(0.0, 1.0)), min_size=1, max_size=40))
@settings(max_examples=100)
def test_a_window_has_room_for_what_its_last_period_left(steps):
    window, now, total, seen = Window(30e-3, 0.1), 0.0, 0.0, [(0.0, 0.0)]
    window.add(0.0, 0.0)
    for elapsed, busy in steps:
        now, total = now + elapsed, total + busy * elapsed
        seen.append((now, total))
        window.add(total, now)
    used = sum(
        (b - a) * max(end - max(start, now - 0.1), 0.0) / (end - start)
        for (start, a), (end, b) in pairwise(seen)
    )
    assert window.room(now) == pytest.approx(30e-3 - used, abs=1e-9)
    need = 10e-3
    if (wait := window.free(need, now)) < 0.1 and window.room(now) < need:
        window.add(total, now + wait)
        assert window.room(now + wait) >= need - 1e-9


def test_what_is_measured_puts_right_what_was_reckoned():
    now = [0.0]
    budget = Budget(lambda: 0.1 * now[0], watts=3.0)  # .3 W by the setting
    budget.limit("energy", 4.0)
    for n in range(1, 201):
        now[0] = 0.05 * n
        budget.look(now[0])
        if n % 10 == 0:
            budget.measured(2.5 * 0.5)  # 2.5 W in all
    account = budget.accounts["energy"]
    assert account.spent == pytest.approx(2.5 * 10.0, rel=0.03)
    assert budget.base == pytest.approx(2.2, rel=0.03)
    assert budget.price == 0.0


def test_a_budget_that_ends_costs_nothing_any_more():
    budget = Budget(lambda: 0.0)
    assert not budget
    budget.limit("cpu", 0.5)
    budget.stop_at(50e-3, 0.1)
    assert budget
    assert set(budget.accounts) == {"cpu", "quota"}
    budget.limit("cpu", math.inf)
    budget.stop_at(math.inf, 0.1)
    assert not budget
    assert (budget.window, budget.look(1.0), budget.spare) == (None, 0.0, math.inf)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_budget_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="rate of cpu must be above 0, got"):
        Budget(lambda: 0.0).limit("cpu", rate)


def test_worths_for_other_levels_are_refused():
    with pytest.raises(ValueError, match=r"worth for each of 2 levels, got \[0.5\]"):
        Governor().init([1e-3, 2e-3], [0.5])


@pytest.mark.parametrize("name", ["cpu_share", "power_w", "battery_hours", "watts_per_core"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"governor.{name} must be above 0.*, got"):
        Settings(**{name: value})
