import json
from math import asinh

import numpy as np
import pytest
from scipy import stats

from adaptive.calibration import BURN_IN, FIRST_THRESHOLD, Calibration
from adaptive.surprise import Rank

INTERVAL = 60.0  # [s]
PER_DAY = 86400.0 / INTERVAL


def judged(calibration, surprises, first=0, level=0, values=None):
    """Take surprises through a calibration, one a minute; return its verdicts."""
    verdicts, rank = [], Rank()
    for n, surprise in enumerate(surprises, first):
        compared = rank.rank(float(surprise))
        row = (0.0,) if values is None else (values[n],)
        verdicts.append(calibration.judge(INTERVAL * n, row, level, compared))
    return verdicts


DRAWS = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    "half-normal": lambda rng, n: np.abs(rng.normal(size=n)),
    "pareto": lambda rng, n: rng.pareto(2.5, n) + 0.01,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_p_values_of_independent_surprises_are_uniform(name):
    surprises = DRAWS[name](np.random.default_rng(0), 12_000)
    p_values = [v.p_value for v in judged(Calibration(1.0, 0), surprises)][2000:]
    assert 0 < min(p_values) <= max(p_values) <= 1
    assert stats.kstest(p_values, "uniform").statistic < 0.025


def test_a_stranger_surprise_never_has_a_larger_p_value():
    rank = Rank()
    for surprise in np.random.default_rng(2).exponential(size=1000):
        rank.rank(float(surprise))
    saved = json.dumps(rank.snapshot())
    ladder, scores = [], []
    for surprise in (0.0, 1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1e6):
        fresh, known = Calibration(1.0, 0), Rank()
        known.restore(json.loads(saved))
        compared = known.rank(surprise)
        ladder.append(compared.p_value)
        scores.append(fresh.judge(1e6, (0.0,), 0, compared).score)
    assert ladder == sorted(ladder, reverse=True)
    assert scores == sorted(scores)
    assert ladder[0] > 0.95
    assert ladder[-1] < 2e-3
    assert scores[0] < 0.5 < 0.75 < scores[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rest"), [("exponential", 0), ("lognormal", 20), ("pareto", 0), ("pareto", 20)]
)
def test_in_the_long_run_as_many_alarms_come_as_were_asked_for(name, rest):
    asked = 0.02  # of the samples
    surprises = DRAWS[name](np.random.default_rng(3), 25_000)
    alarms = [v.alarm for v in judged(Calibration(asked * PER_DAY, rest), surprises)]
    assert np.mean(alarms[5000:]) == pytest.approx(asked, rel=0.1)


def test_rows_of_one_time_and_a_long_gap_do_not_move_the_alarm_rate():
    rng = np.random.default_rng(21)
    hours = np.repeat(np.arange(30_000.0), rng.integers(1, 3, size=30_000))  # every other one twice
    hours[20_000:] += 7000.0  # ten months of nothing
    calibration, rank, alarms = Calibration(2.0, 5), Rank(), 0
    for hour, x in zip(hours.tolist(), rng.lognormal(size=len(hours)), strict=True):
        surprise = rank.rank(float(x))
        alarms += calibration.judge(3600 * hour, [0.0], 0, surprise).alarm
    assert alarms == pytest.approx(2.0 * 30_000 / 24, rel=0.05)


def test_confirmed_alarms_do_not_make_others_rarer():
    rng, asked = np.random.default_rng(22), 0.01
    surprises = rng.exponential(size=12_000)
    events = np.arange(600, 12_000, 60)
    surprises[events] = rng.uniform(6.0, 12.0, len(events))
    is_event = np.isin(np.arange(12_000), events)
    false, found = {}, {}
    for told in (True, False):
        calibration, rank, alarms, late = Calibration(asked * PER_DAY, 0), Rank(), [], []
        for n, x in enumerate(surprises.tolist()):
            verdict = calibration.judge(n * INTERVAL, [0.0], 0, rank.rank(x))
            alarms.append(verdict.alarm)
            late.append(told and verdict.alarm and bool(is_event[n]))
            if n >= 500 and late[n - 500]:  # an operator answers 500 samples later
                calibration.confirm(1)
        alarms = np.array(alarms)
        false[told] = alarms[2000:][~is_event[2000:]].mean()
        found[told] = alarms[2000:][is_event[2000:]].mean()
    assert false[True] == pytest.approx(asked, rel=0.15)
    assert false[False] < 0.3 * asked
    assert found[True] > found[False] + 0.2


def test_no_alarm_comes_where_none_is_asked_for_but_what_was_there_before_the_threshold_moved():
    surprises = np.random.default_rng(4).exponential(size=3000)
    assert sum(v.alarm for v in judged(Calibration(0.0, 100), surprises)) <= 1


@pytest.mark.parametrize("rest", [0, 10, 50])
def test_repeats_within_the_rest_of_an_alarm_are_no_alarms(rest):
    rng = np.random.default_rng(5)
    surprises = rng.exponential(size=4000)
    for start in range(600, 4000, 300):
        surprises[start : start + 40] *= 20
    verdicts = judged(Calibration(0.01 * PER_DAY, rest), surprises)
    alarms = np.flatnonzero([v.alarm for v in verdicts])
    assert len(alarms) > 5
    # At most a twentieth of the asked-for time between two alarms, or the rate were out of reach.
    assert np.diff(alarms).min() > min(rest, 5)
    # The threshold knows what an alarm is, whatever is shown: strength and alarm agree in order.
    assert all(0 <= v.strength < 1 for v in verdicts)


def test_nothing_alarms_before_there_is_something_to_compare_with():
    surprises = np.random.default_rng(6).exponential(size=BURN_IN)
    surprises[200:] *= 50
    values = np.zeros(BURN_IN)
    values[250:] = 1e6
    verdicts = judged(Calibration(100.0, 0), surprises, values=values)
    assert not any(v.alarm or v.strength for v in verdicts)


def test_a_value_outside_of_all_earlier_ones_by_more_than_a_margin_is_strong():
    surprises = np.random.default_rng(7).exponential(size=1000)
    values = np.random.default_rng(8).uniform(-1, 1, 1000)
    values[:2] = -1, 1
    values[500], values[600], values[700], values[800] = 1.09, 1.3, np.nan, -np.inf
    values[900] = 1.3  # known by now
    verdicts = judged(Calibration(1.0, 0), surprises, values=values)
    strength = np.array([v.strength for v in verdicts])
    assert strength[600] >= 8 / 9
    assert (np.delete(strength, 600) < 8 / 9).all()


@pytest.mark.parametrize("before", [0, 1, 299, 700])
def test_a_restored_calibration_goes_on_as_if_nothing_had_happened(before):
    rng = np.random.default_rng(10)
    surprises, values = rng.exponential(size=1000), rng.normal(size=(1000, 3))
    rank = Rank()
    compared = [rank.rank(x) for x in surprises.tolist()]
    values[:, 2] = np.nan  # a channel that was never seen has no range
    one, other = Calibration(0.02 * PER_DAY, 5), Calibration(0.02 * PER_DAY, 5)

    def take(calibration, n):
        return calibration.judge(INTERVAL * n, values[n].tolist(), n % 3 - 1, compared[n])

    for n in range(before):
        take(one, n)
    other.restore(json.loads(json.dumps(one.snapshot(), allow_nan=False)))
    for n in range(before, 1000):
        assert take(one, n) == take(other, n)
    assert one.snapshot() == other.snapshot()


@pytest.mark.parametrize("asked", [0.0, 1e-9])
def test_none_are_asked_for_and_none_come(asked):
    surprises = np.random.default_rng(14).exponential(size=1000)
    surprises[700] = 4000.0
    alarms = [v.alarm for v in judged(Calibration(asked, 0), surprises)]
    assert any(alarms) == (asked > 0)


def test_a_level_that_was_hardly_seen_does_not_set_the_first_threshold():
    calibration, ranks = Calibration(0.02 * PER_DAY, 0), (Rank(), Rank())
    for n, x in enumerate(np.random.default_rng(15).exponential(size=300).tolist()):
        level = 0 if n < 295 else 1
        calibration.judge(INTERVAL * n, [0.0], level, ranks[level].rank(x))
    assert calibration.threshold == asinh(FIRST_THRESHOLD)


@pytest.mark.slow
def test_changes_of_level_do_not_move_the_alarm_rate():
    rng, asked, many = np.random.default_rng(16), 0.02, 40_000
    draws = rng.gamma(2.0, size=many)
    units = np.array([1.0, 0.01, 300.0])  # a cheaper level measures something else
    levels = rng.integers(0, 3, many // 500).repeat(500)
    still, changing = Calibration(asked * PER_DAY, 0), Calibration(asked * PER_DAY, 0)
    got, ranks = np.zeros((2, many), bool), [[Rank() for _ in units] for _ in range(2)]
    for n, (x, level) in enumerate(zip(draws, levels.tolist(), strict=True)):
        for k, (one, at) in enumerate(((still, 0), (changing, level))):
            compared = ranks[k][at].rank(float(x * units[at]))
            got[k, n] = one.judge(INTERVAL * n, (0.0,), at, compared).alarm
    rates = got[:, 4000:].mean(axis=1) / asked
    np.testing.assert_allclose(rates, 1.0, atol=0.05)
    change = np.flatnonzero(np.diff(levels)) + 1
    after = np.concatenate([got[1, c : c + 100] for c in change if c > 4000])
    assert after.mean() == pytest.approx(asked, rel=0.4)
