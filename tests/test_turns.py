"""Policies that govern in turns, on a real loop."""

import asyncio
from types import SimpleNamespace

import pytest

from adaptive.backlog import Line
from adaptive.contest import OURS, QUALITY
from adaptive.decision import Decision
from adaptive.live import Bench, table
from adaptive.policy import Policy
from adaptive.settings import Level, Model
from adaptive.simulation import Profile
from adaptive.turns import Count, Schedule, Turns, contestants, order, possible

PROFILE = Profile((1, 8), ((1.0, 4.0), (2.0, 8.0), (3.0, 16.0)), 0.0)
# As in test_model.py, so that the programs are on disk already.
LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)


@pytest.mark.parametrize("first", [0, 1, 5])
def test_everybody_has_as_many_turns_as_early_as_late(first):
    names = list("abc")
    found = order(names, 4, first)
    assert found[0] == names[first % 3]
    assert all(found.count(name) == 4 for name in names)
    places = [sum(n for n, one in enumerate(found) if one == name) for name in names]
    assert len(set(places)) == 1


def test_a_moment_belongs_to_the_policy_whose_turn_it_is():
    schedule = Schedule(10.0, 2.0, ("a", "b", "a"))
    found = [schedule.at(now) for now in (9.5, 10.0, 11.5, 12.5, 15.0, 17.0)]
    assert found == [("a", -0.5), ("a", 0.0), ("a", 1.5), ("b", 0.5), ("a", 1.0), ("a", 3.0)]


def test_the_oracle_takes_the_best_level_that_fits_as_slow_as_the_call_was():
    # Of eight samples, at half the nominal speed: 8, 16 or 32 seconds.
    for slack, best in ((7.9, 0), (8.0, 1), (31.0, 2), (32.0, 3)):
        for level in range(3):
            cost = 2 * PROFILE.costs[level][1]
            assert possible(PROFILE.every(), level, 8, cost, slack) == QUALITY[best]


class Told:
    """Decides as it is told, and keeps what it hears."""

    def __init__(self, decision):
        self.decision, self.heard = decision, []

    def decide(self, slack, queue, now):
        return self.decision

    def observe(self, level, batch, cost, now):
        self.heard.append((level, batch, cost))

    def failed(self, cause, now):
        self.heard.append(cause)


class Sample(SimpleNamespace):
    """Waits; like no other."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def waiting(deadline, answered=False):
    return Sample(deadline=deadline, answered=answered)


def test_each_policy_hears_of_its_own_calls_and_answers_for_them():
    a, b = Told(Decision(2, 8)), Told(Decision(0, 8, sure=False))
    assert isinstance(a, Policy)
    turns = Turns({"a": a, "b": b}, Schedule(0.0, 10.0, ("a", "b")), PROFILE, 1.0)
    late, early = waiting(5.0), waiting(9.0)
    backlog, turns.lines = [late, waiting(2.0, True), early, waiting(1.0)], [Line()]
    turns.bank, turns.lines[0].hope = SimpleNamespace(backlog=backlog, taken=[]), 0.1
    assert turns.decide(8.0, 4, 3.0) == Decision(2, 8)
    assert turns.lines[0].hope == 1.0
    turns.bank.taken = backlog[:3]
    turns.observe(2, 8, 32.0, 7.0)
    assert turns.counts["a"] == Count(
        meant=2, late=1, calls=1, considered=2, possible=2 * QUALITY[1]
    )
    # Nobody counted on this one, and the other hears of it although it ends in a's turn no more.
    turns.bank.backlog = turns.bank.taken = [waiting(20.0) for _ in range(4)]
    turns.decide(6.0, 4, 12.0)
    turns.observe(0, 4, 4.0, 16.0)
    turns.failed("worker", 17.0)
    assert turns.counts["b"].meant == 0
    assert turns.counts["b"].calls == 1
    assert a.heard == [(2, 8, 32.0)]
    assert b.heard == [(0, 4, 4.0), "worker"]
    # What a turn inherits does not count.
    turns.decide(6.0, 4, 0.5)
    turns.observe(2, 3, 4.0, 4.5)
    assert turns.counts["a"].calls == 1


def test_a_late_answer_is_worth_nothing():
    count = Count(samples=10, in_time=8, refined=[1, 0, 3])
    wanted = (4 * QUALITY[0] + QUALITY[1] + 3 * QUALITY[3]) / 10
    assert count.quality == pytest.approx(wanted)


@pytest.mark.slow
def test_all_policies_have_turns_on_a_real_loop_and_their_counts_add_up():
    bench = Bench(SETTINGS, streams=6)

    async def main():
        await bench.prepare()
        # Fails if a sample was lost.
        return [await bench.live(case, 0.05, 1.8, 2) for case in ("steps", "quiet")]

    try:
        lived = asyncio.run(main())
    finally:
        bench.process.close()
    for one in lived:
        assert set(one.counts) == set(contestants(PROFILE))
        assert one.sent == one.answered + one.shed
        assert sum(count.samples for count in one.counts.values()) < one.sent
        for count in one.counts.values():
            assert count.samples == 6 * 4
            assert count.samples >= count.in_time >= sum(count.refined)
            assert count.meant >= count.late
        assert len(table(one).rows) == len(one.counts)
    for name in lived[0].counts:  # in one of its turns a stalled machine may leave no time for any
        assert sum(one.counts[name].calls for one in lived) > 0, name
    assert OURS in lived[0].counts


def test_a_model_whose_quality_is_not_known_is_refused():
    with pytest.raises(ValueError, match="3 levels"):
        Bench(Model(memory_samples=512, levels=LEVELS[:2]))
