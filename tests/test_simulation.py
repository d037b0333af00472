"""The governor's day in virtual time, and the policies that it is compared with."""

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive import contest
from adaptive.__main__ import main
from adaptive.contest import DIST, MYOPIC, OURS, PROFILE, QUALITY, RANKS, SMALL, judge, policies
from adaptive.decision import Decision
from adaptive.machine import Gaps, Machine
from adaptive.policies import Static
from adaptive.scenarios import (
    BEDSIDE,
    GATEWAY,
    SCENARIOS,
    SITES,
    Quota,
    Rank,
    Site,
    World,
    world,
)
from adaptive.simulation import Outcome, load, patience, simulate
from adaptive.steps import Call, followed

LEVELS, SAMPLES = len(PROFILE.costs), 4000
MAIN = OURS, SMALL, DIST, MYOPIC
CROWDED = "recorded, crowded", "recorded, crowded, memory"

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=8)


@given(spans, st.integers(0, 70), st.integers(0, 40))
def test_work_goes_on_when_something_runs(spans, start, work):
    gaps = Gaps([(float(a), float(a + many)) for a, many in spans])
    stopped = {second for a, many in spans for second in range(a, a + many)}
    begun = next(t for t in range(start, 200) if t not in stopped)
    assert gaps.after(float(start)) == begun
    left, now = work, start
    while left:
        left -= now not in stopped
        now += 1
    if work:
        assert gaps.through(float(start), float(work)) == now


calls = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 120)), min_size=1, max_size=12)


@given(calls, st.integers(1, 60), st.integers(0, 1))
def test_what_uses_up_its_quota_stops_until_the_next_period(calls, share, base):
    # A period has 100 seconds, of each of which the load beside the model takes a half, or nothing.
    one = np.zeros(1)
    rest, base = max(share, 51) if base else share, 0.5 * base
    each = one[:, None]
    limited = World(one, one, one, each, each, base=base, quota=Quota(float(rest), 100.0))
    machine, now, used, period = Machine(limited), 0.0, 0.0, 0
    for gap, work in calls:
        now = machine.after(now + gap)
        ahead, end = machine.through(now, float(work)), machine.run(now, float(work))
        assert ahead == end
        left, time = float(work), now
        while left > 1e-6:
            if int(time / 100 + 1e-9) != period:
                period, used = int(time / 100 + 1e-9), 0.0
            free = (rest - used - base * (time - 100 * period)) / (1 + base)
            runs = min(left, max(free, 0.0), 100 * (period + 1) - time)
            used, left, time = used + runs, left - runs, time + runs
            if left > 1e-6:
                time = 100.0 * (period + 1)
        assert end == pytest.approx(time)
        now = end
    assert machine.spent(now) == pytest.approx(sum(work for _, work in calls) + base * now)


def lived(scenario, site, samples, *names):
    """What became of a world by some policies; nothing is checked at each call there."""
    job = contest.Job(scenario, SITES.index(site), 0, samples, names)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return tuple(pool.submit(contest.live, job).result().values())


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_who_knows_the_quota_is_never_stopped_by_it_and_who_does_not_is(site):
    ours, oracle, blind = lived("quota", site, 6 * SAMPLES, OURS, MYOPIC, "static, largest")
    assert ours.missed <= 1e-3 * ours.samples
    assert blind.missed > 0.05 * blind.samples
    worth, best = (one.quality(QUALITY[0], QUALITY[1:]) for one in (ours, oracle))
    assert worth >= 0.95 * best
    assert worth > 1.15 * blind.quality(QUALITY[0], QUALITY[1:])
    # No turns of many answers at the highest level, and none while the window is full.
    assert sum(ours.refined) > 0.85 * ours.samples


@pytest.mark.slow
def test_a_budget_is_kept_within_two_percent_with_the_quality_of_an_oracle_that_has_it_too():
    ours, oracle = lived("budget halved", GATEWAY, 100_000, OURS, MYOPIC)
    assert ours.spent == pytest.approx(ours.granted, rel=0.02)
    assert oracle.spent == pytest.approx(oracle.granted, rel=0.02)
    worth, best = (one.quality(QUALITY[0], QUALITY[1:]) for one in (ours, oracle))
    assert worth >= 0.95 * best
    assert ours.late <= 1e-3 * ours.samples
    assert ours.missed == 0


def test_what_budgets_allow_is_the_sum_over_the_time_of_each():
    given = world("budget halved", BEDSIDE, LEVELS, 400, 0)
    found = simulate(given, PROFILE, policies(given)[SMALL]())
    assert found.granted == pytest.approx(0.75 * given.budgets[0][1] * given.length, rel=0.03)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_world_is_the_same_for_the_same_seed_and_another_for_another(name, site):
    one, same, other = (world(name, site, LEVELS, 500, seed) for seed in (0, 0, 1))
    for a, b in zip(vars(one).values(), vars(same).values(), strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b
    assert (one.arrivals != other.arrivals).any()
    assert (np.diff(one.arrivals) >= 0).all()
    assert (one.deadlines > 0).all()
    assert np.isfinite(one.noise).all()
    assert np.isfinite(one.slow).all()


def test_every_sample_is_accounted_for_by_every_policy_and_nothing_looks_at_a_clock():
    # In processes of their own nothing is checked at each call, which takes ten times as long.
    once, again = (list(contest.outcomes(1, 1500, workers=2)) for _ in range(2))
    assert once == again
    assert len(once) == len(SCENARIOS) * len(SITES)
    for _, each in once:
        for found in each.values():
            simple = found.samples - sum(found.refined) - found.missed
            assert found.samples == 1500
            assert simple >= found.late + found.tried - found.missed
            assert 0 <= found.quality(QUALITY[0], QUALITY[1:]) <= max(QUALITY)


def test_a_quiet_machine_answers_everything_in_full():
    given = world("quiet", GATEWAY, LEVELS, SAMPLES, 0)
    full = simulate(given, PROFILE, Static(PROFILE, level=LEVELS - 1))
    assert full.refined == (0, 0, SAMPLES)
    assert (full.missed, full.switches) == (0, 1)
    ours = simulate(given, PROFILE, policies(given)[OURS]())
    assert ours.refined[-1] > 0.99 * SAMPLES


def test_a_quiet_machine_with_time_to_spare_learns_all_that_is_due():
    # The gateway has none: while a call is under way the next samples come.
    given = world("quiet", BEDSIDE, LEVELS, SAMPLES, 0)
    ours = simulate(given, PROFILE, policies(given)[OURS]())
    assert ours.refined[-1] > 0.99 * SAMPLES
    assert ours.learned >= ours.owed - 2


def test_what_is_expected_to_be_late_is_answered_at_once_and_what_is_late_when_it_is_due():
    class Given:
        """Decides as it is told."""

        def __init__(self, level):
            self.level, self.told = level, []

        def decide(self, slack, queue, now):
            return Decision(self.level, queue)

        def observe(self, level, batch, cost, now):
            self.told.append((level, batch, cost))

        def failed(self, cause, now):
            self.told.append(cause)

    lonely = Site("lonely", 1, 10.0, 10e-3, 200.0)  # a call takes longer than there is
    given = world("quiet", lonely, LEVELS, 50, 0)
    never, late = Given(-1), Given(0)
    # After seven that were late nobody waits for the model any more.
    for policy, many in ((never, 0), (late, 7)):
        found = simulate(given, PROFILE, policy)
        blank = found._replace(backlog=0, spent=0.0, load=0.0)
        assert blank == Outcome(50, (0, 0, 0), many, 0, 0, 1, 1, 50, 0)
        # The model saw all of them, at its cheapest level.
        assert [(level, batch) for level, batch, _ in policy.told] == [(0, 1)] * 50
    assert patience(10e-3) == pytest.approx(8e-3)


def test_a_call_that_the_model_dies_in_costs_its_samples_the_better_answer_and_nothing_else():
    given = world("crash", BEDSIDE, LEVELS, SAMPLES, 0)
    told = []
    policy = policies(given)[OURS]()
    policy.failed = lambda cause, now, failed=policy.failed: (
        told.append(cause),
        failed(cause, now),
    )
    found = simulate(given, PROFILE, policy)
    assert told == ["worker"] * 2
    assert found.missed == 0
    down = 2 * 1.0 / (given.length / SAMPLES)
    assert SAMPLES - sum(found.refined) < 1.2 * down


def budgeted(share):
    """A slow site with so much of a core, with a critical stream and without one."""
    given = world("quiet", BEDSIDE, LEVELS, 2 * SAMPLES, 1)
    ample, short, then = (k * given.length for k in (0.0, 0.2, 0.35))
    given = replace(given, budgets=((ample, 0.9), (short, 0.8 * share), (then, share)))
    ranks = tuple(Rank(critical=k == 0) for k in range(BEDSIDE.streams))
    ranked = replace(given, ranks=ranks)
    return [simulate(one, PROFILE, policies(one)[OURS]()) for one in (ranked, given)]


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_budget_is_kept_with_critical_streams_and_costs_no_more_quality_than_without(share):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        some, none = pool.submit(budgeted, share).result()
    assert some.spent <= 1.03 * some.granted
    worths = [one.quality(QUALITY[0], QUALITY[1:]) for one in (some, none)]
    assert worths[0] >= 0.95 * worths[1]
    assert some.best >= 0.5 * some.critical


@pytest.fixture(scope="module")
def short():
    """Every scenario once."""
    return list(contest.outcomes(1, SAMPLES, MAIN, workers=2))


def test_who_knows_each_call_is_never_late(short):
    assert all(each[MYOPIC].late == 0 for _, each in short)


def test_the_governor_holds_its_goals_in_short_worlds(short):
    calm = [(job, each) for job, each in short if job.scenario not in (*CROWDED, RANKS)]
    for name, one in contest.by_scenario(calm).items():
        assert one.missed <= one.unmissed + 0.005, name  # where all stops, so do answers
        assert one.late <= 0.006, name
        assert one.quality >= 0.8, name
    every = judge([each for _, each in calm], OURS)
    assert every.late <= 0.001
    assert every.quality >= 0.97
    assert every.by_law >= 0.97
    assert every.by_call >= 0.90


def test_where_calls_lose_the_processor_for_long_the_governor_is_seldom_late(short):
    # No level is sure there; what each call would take only an oracle knows.
    crowded = [(job, each) for job, each in short if job.scenario in CROWDED]
    for name, one in contest.by_scenario(crowded).items():
        assert one.missed <= one.unmissed + 0.005, name
    assert judge([each for _, each in crowded], OURS).late <= 0.1


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_critical_streams_have_the_highest_level_for_longer_and_promises_are_kept(site):
    ours, without = lived(RANKS, site, 3 * SAMPLES, OURS, "without ranks")
    assert ours.critical == without.critical > 0
    assert ours.best > 1.05 * without.best
    assert ours.broken <= 0.35 * without.broken


def test_a_step_is_followed_by_what_it_says():
    before = [Call(0.1 * n, 0.1 * n + 0.05, 2, late=False) for n in range(10)]
    under_way = Call(0.99, 1.05, 2, late=True)
    then = [Call(1.1, 1.2, 1, late=True), *(Call(1.2 + k / 10, 1.3, 0, k > 3) for k in range(8))]
    back = [Call(2.1, 2.15, 1, late=False), Call(2.25, 2.3, 2, late=False)]
    (one,) = followed(((1.0, 2.0),), [*before, under_way, *then, *back])
    assert one[:2] == (2, 2)  # what is late half a second later is not for the step
    assert one.back == pytest.approx(0.25)
    (never,) = followed(((1.0, 2.0),), [*before, under_way, *then, *back[:1]])
    assert never.back == math.inf


def test_steps_are_followed_at_once_and_left_soon(short):
    steps = [one for _, each in short for one in each[OURS].followed]
    assert len(steps) == 7 * len(SITES)
    assert max(one.late for one in steps) <= 2  # the one under way and one more
    assert np.mean([one.late for one in steps]) <= 0.5
    assert max(one.back for one in steps) <= 0.5
    theirs = [one for _, each in short for one in each[MYOPIC].followed]
    assert np.mean([one.calls - other.calls for one, other in zip(steps, theirs, strict=True)]) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("part", contest.PARTS)
def test_a_part_that_is_taken_out_is_out(part):
    needing = {
        "ranks": (RANKS, BEDSIDE, 1500),
        "hold of a spike": ("bad hour", BEDSIDE, 1500),
        "largest residual seen": ("recorded, busy", GATEWAY, 8000),  # of a thousand calls
    }
    name, site, samples = needing.get(part, ("recorded, crowded", BEDSIDE, 1500))
    whole, other = lived(name, site, samples, OURS, f"without {part}")
    assert whole != other


def test_a_load_is_what_the_highest_level_takes_of_the_time_that_may_be_had():
    given = world("quiet", BEDSIDE, LEVELS, SAMPLES, 0)
    work = SAMPLES * 4 * PROFILE.costs[-1][2] / 4  # in calls for four, four times as slow
    assert load(given, PROFILE) == pytest.approx(work / given.length, rel=0.05)
    half = replace(given, quota=Quota(0.05, 0.1))
    left = given.length * (0.5 - given.base)
    assert load(half, PROFILE) == pytest.approx(load(given, PROFILE) * given.length / left)
    away = replace(given, pauses=((0.0, 0.5 * given.length),))
    assert load(away, PROFILE) == pytest.approx(2 * load(given, PROFILE))
    twice = replace(away, crashes=((0.1 * given.length, 0.2 * given.length),))
    assert load(twice, PROFILE) == load(away, PROFILE)
    after = replace(given, pauses=((2 * given.length, 3 * given.length),))
    assert load(after, PROFILE) == load(given, PROFILE)
    never = replace(given, crashes=((0.0, 2 * given.length),))
    assert load(never, PROFILE) == math.inf


def test_what_no_oracle_could_have_had_does_not_count_in_the_summary(short):
    _, outcomes = short[0]
    good = judge([outcomes], OURS)._replace(quality=0.98, attainable=0.99, load=0.2, learned=0.95)
    told = contest.summary({"a": good, "b": good._replace(quality=0.5, attainable=0.6, load=0.9)})
    assert told.endswith("in 1 of 2: quality 0.980 in the mean, at least 0.980 (a)")
    assert "90% or more of the steps in 1 of 1;" in told
    none = contest.summary({"b": good._replace(attainable=0.6, load=0.9)})
    assert none.endswith("in 0 of 1")


def test_the_table_names_every_scenario_and_policy(short):
    ours, every, ranked, stepped = contest.tables(short)
    assert len(ours.rows) == len(SCENARIOS) * len(SITES)
    assert (len(every.rows), len(ranked.rows), len(stepped.rows)) == (2, 3, 3)  # the oracle, too


def test_the_command_prints_both_tables(capsys):
    options = ["--seeds", "1", "--samples", "200", "--workers", "2"]
    assert main(["bench", "governor", "--simulate", *options]) == 0
    printed = capsys.readouterr().out
    assert "the governor, by scenario and site" in printed
    assert "without tries" in printed
    assert main(["bench", "governor", "--simulate", "--alone", *options]) == 0
    assert "without tries" not in capsys.readouterr().out
    few = ["--cases", "quiet,step x3", *options]
    assert main(["bench", "governor", "--simulate", "--alone", *few]) == 0
    printed = capsys.readouterr().out
    assert "quiet, bedside" in printed
    assert "ramp" not in printed
