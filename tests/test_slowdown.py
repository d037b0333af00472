import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.slowdown import (
    COLD_MAX,
    CORRECTION_MAX,
    LOW,
    OFTEN,
    SPIKE,
    STEP,
    TILT_MAX,
    USUAL,
    Effects,
    Slowdown,
    Tail,
    believed,
    coldness,
    common,
    margin,
    paused,
    regress,
    track,
    widen,
)


def followed(zs, state=None):
    state = state or Slowdown()
    for z in zs:
        state, _, _ = track(state, z, 1.0, False)
    return state


def settled(level=0.0, spread=0.05, calls=500):
    draw = random.Random(0)
    return followed(draw.gauss(level, spread) for _ in range(calls))


@pytest.mark.parametrize("level", [-0.5, 0.0, 1.2])
def test_the_mean_and_noise_of_a_steady_machine_are_found(level):
    state = settled(level, 0.1, 3000)
    assert state.mean == pytest.approx(level, abs=0.05)
    assert math.sqrt(state.noise) == pytest.approx(0.1, rel=0.3)


def test_good_news_moves_the_mean_by_a_fifth_at_most():
    before = settled()
    after = followed([-2.0], before)
    assert before.mean > after.mean >= before.mean + 0.2 * (-2.0 - before.mean) - 1e-12
    assert believed(after) == after.mean
    assert after.noise == before.noise  # a way down is no noise


def test_good_news_is_believed_where_nobody_counted_on_it_and_it_comes_twice():
    state = settled(2.0)
    for z, mean in ((-0.1, None), (0.1, 0.1)):
        state, _, kind = track(state, z, 1.0, True)
        assert kind == LOW
        assert mean is None or state.mean == mean


def test_a_spike_is_believed_for_two_decisions_and_a_second_one_makes_it_a_step():
    state, _, kind = track(settled(), 1.5, 1.0, False)
    assert (kind, state.hold_left, believed(state)) == (SPIKE, 2, 1.5)
    state, _, kind = track(state, 1.2, 1.0, False)
    assert (kind, state.hold_left, believed(state)) == (STEP, 0, 1.2)
    assert state.mean == 1.2


def test_wider_noise_is_soon_taken_for_usual():
    draw, state, kinds = random.Random(1), settled(spread=0.01), []
    for _ in range(1000):
        state, _, kind = track(state, draw.gauss(0.0, 0.3), 1.0, False)
        kinds.append(kind)
    assert sum(kind == USUAL for kind in kinds[500:]) > 0.97 * 500


def test_the_tail_learns_nothing_from_a_step_and_from_a_spike_only_when_it_proves_to_be_one():
    tail = Tail()
    spike = widen(tail, 1.0, SPIKE, True, False, 1e-3)
    assert (spike.threshold, spike.excess) == (tail.threshold, tail.excess)
    assert spike.correction > tail.correction
    assert widen(spike, 1.0, STEP, True, False, 1e-3) == spike._replace(pending=0.0)
    assert widen(spike, 0.0, USUAL, False, False, 1e-3).excess > tail.excess


def test_a_correction_wound_up_in_an_overload_is_halved_by_each_good_probe():
    tail = Tail(correction=CORRECTION_MAX)
    for _ in range(6):
        tail = widen(tail, 0.0, USUAL, False, True, 1e-3)
    assert tail.correction == pytest.approx(CORRECTION_MAX / 64)
    assert widen(tail, 9.0, USUAL, True, True, 1e-3).correction == tail.correction


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-3, 1e-2])
@pytest.mark.parametrize("law", ["normal", "exponential", "pareto", "drifting"])
def test_the_margin_is_exceeded_no_more_often_than_asked_for_whatever_the_law(epsilon, law):
    # While the correction stays below its limit, the long-run share telescopes to epsilon
    # within 1.7 / (0.1 T), for any sequence.
    draw, tail, above, calls = random.Random(2), Tail(), 0, 20_000
    for n in range(calls):
        residual = {
            "normal": draw.gauss(0.0, 0.2),
            "exponential": draw.expovariate(5.0),
            "pareto": math.log(draw.paretovariate(4.0)),
            "drifting": draw.gauss(0.0, 0.05 + 0.3 * n / calls),
        }[law]
        exceeded = residual > margin(tail, math.log(OFTEN / epsilon))
        above += exceeded
        tail = widen(tail, residual, USUAL, exceeded, False, epsilon)
        assert tail.correction < CORRECTION_MAX
    assert above / calls <= epsilon + 1.7 / (0.1 * calls)


def paired(calls=600, cold=0.6, tilt=0.0, every=2, level=lambda n: 0):
    """What was learned of calls of which every second, or each, comes after a long pause."""
    draw, slowdown, effects = random.Random(2), Slowdown(), Effects()
    for n in range(calls):
        effects = paused(effects, 0.045 if n % every == 0 else 1e-4)
        z = cold * effects.now + tilt * level(n) + draw.gauss(0.3, 0.05)
        known = common(effects) + effects.tilt * level(n)
        slowdown, residual, kind = track(slowdown, z - known, 1.0, False)
        effects = regress(effects, residual, kind, level(n))
    return slowdown, effects


@pytest.mark.parametrize("tilt", [-0.3, 0.0, 0.5])
def test_what_pauses_and_levels_add_is_learned_apart_from_how_slow_all_are(tilt):
    slowdown, effects = paired(2000, tilt=tilt, level=lambda n: n // 3 % 3)
    assert effects.cold == pytest.approx(0.6, abs=0.1)
    assert effects.tilt == pytest.approx(tilt, abs=0.05)
    for pause in (0.0, 5e-3, 0.05):
        ahead = believed(slowdown) + common(paused(effects, pause))
        assert ahead == pytest.approx(0.3 + 0.6 * coldness(pause), abs=0.1)


def test_where_all_pauses_and_levels_are_alike_nothing_is_learned_from_them():
    slowdown, effects = paired(every=1, level=lambda n: 2, tilt=0.4)
    assert (effects.cold, effects.tilt) == pytest.approx((0.0, 0.0), abs=0.02)
    wanted = 0.3 + 0.8 + 0.6 * coldness(0.045)
    assert believed(slowdown) + common(effects) == pytest.approx(wanted, abs=0.05)


@given(
    st.lists(
        st.tuples(st.floats(0.0, math.inf), st.floats(-10, 10), st.integers(0, 5)), max_size=30
    )
)
def test_no_call_however_odd_leaves_an_effect_outside_of_its_limits(calls):
    effects = Effects()
    for pause, residual, level in calls:
        effects = regress(paused(effects, pause), residual, USUAL, level)
        assert 0.0 <= effects.cold <= COLD_MAX
        assert abs(effects.tilt) <= TILT_MAX
        assert abs(common(effects)) <= COLD_MAX + 5 * TILT_MAX


def test_calls_that_stand_still_widen_no_margin_however_often():
    slowdown, tail = settled(), Tail()
    for n in range(2000):
        z = 4.0 if n % 100 == 50 else 0.0
        slowdown, residual, kind = track(slowdown, z, 1.0, False)
        tail = widen(tail, residual, kind, z > 0.0, False, 1e-3)
    assert tail.correction <= 0.0
    assert tail.excess <= Tail().excess
