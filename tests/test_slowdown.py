import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.slowdown import (
    CORRECTION_MAX,
    LOW,
    OFTEN,
    SHIFT,
    SPIKE,
    STEP,
    USUAL,
    Slowdown,
    Tail,
    beyond,
    margin,
    reckoned,
    track,
    widen,
    within,
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
    assert after.noise == before.noise  # a way down is no noise


def test_good_news_is_believed_where_nobody_counted_on_it_and_it_comes_twice():
    state = settled(2.0)
    for z, mean in ((-0.1, None), (0.1, 0.1)):
        state, _, kind = track(state, z, 1.0, True)
        assert kind == LOW
        assert mean is None or state.mean == mean


def test_a_spike_is_believed_for_two_decisions_and_a_second_one_makes_it_a_step():
    tail, depth = Tail(), math.log(20)
    state, residual, kind = track(settled(), 1.5, 1.0, False, 0.5)
    assert (kind, state.hold_left) == (SPIKE, 2)
    assert reckoned(state, tail, depth) == residual > margin(tail, depth)
    state, _, kind = track(state, 1.2, 1.0, False, 0.5)
    assert (kind, state.hold_left) == (STEP, 0)
    assert reckoned(state, tail, depth) == margin(tail, depth)
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


def test_calls_that_stand_still_widen_no_margin_however_often():
    slowdown, tail = settled(), Tail()
    for n in range(2000):
        z = 4.0 if n % 100 == 50 else 0.0
        slowdown, residual, kind = track(slowdown, z, 1.0, False)
        tail = widen(tail, residual, kind, z > 0.0, False, 1e-3)
    assert tail.correction <= 0.0
    assert tail.excess <= Tail().excess


@given(st.floats(0.0, 1.0), st.floats(0.0, 0.7), st.floats(-0.2, 1.5), st.floats(1e-5, 1.0))
def test_what_may_be_expected_within_a_budget_takes_the_budget_at_most(
    threshold, excess, correction, typical
):
    tail, depth = Tail(threshold, excess, correction), math.log(20)
    extra = margin(tail, depth)
    budget = beyond(typical, extra)
    assert budget >= typical * (1 - 1e-9)
    assert within(budget, extra) == pytest.approx(typical, rel=1e-6, abs=1e-9)
    # Of a short call the margin is the larger share, of a long one the longer time.
    longer = beyond(2.0 * typical, extra)
    assert longer / (2.0 * typical) <= budget / typical * (1 + 1e-9)
    assert longer - 2.0 * typical >= budget - typical - 1e-12


def test_a_short_call_that_stands_still_says_less_of_how_slow_all_are_than_a_long_one():
    moved = []
    for nominal in (1e-4, 1e-3, 1e-1):
        z = math.log(1.5)  # half as long again, usual noise
        state = Slowdown(variance=0.01, noise=0.04)
        after, residual, kind = track(state, z, 1.0, False, SHIFT / nominal)
        assert kind == USUAL
        assert residual == pytest.approx(
            math.log((1.5 * nominal + SHIFT) / (nominal + SHIFT)), rel=1e-9
        )
        moved.append(after.mean)
    assert 0.0 < moved[0] < moved[1] < moved[2]


def test_without_a_shift_residuals_are_ratios():
    state = Slowdown(mean=0.2, variance=0.01, noise=0.04)
    _, residual, _ = track(state, 0.5, 1.0, False)
    assert residual == pytest.approx(0.3)


def lived(stall, often, calls, seed=7):
    """Calls of .2 and 4 ms, some of which stand still; which were late, and what is known then."""
    draw, slowdown, tail, depth = random.Random(seed), settled(), Tail(), math.log(20)
    late = []
    for n in range(calls):
        nominal = 0.2e-3 if n % 2 else 4e-3
        stood = stall(draw) if draw.random() < often else 0.0
        cost = nominal * math.exp(draw.gauss(0.0, 0.05)) + stood
        late.append(cost > beyond(nominal * math.exp(slowdown.mean), margin(tail, depth)))
        z = math.log(cost / nominal)
        slowdown, residual, kind = track(slowdown, z, 1.0, False, SHIFT / nominal)
        tail = widen(tail, residual, kind, late[-1], False, 1e-3)
    return late, tail, depth


def test_where_calls_lose_the_processor_now_and_then_long_ones_need_no_margin_of_short_ones():
    late, tail, depth = lived(lambda draw: draw.expovariate(1e3) + 1e-3, 0.01, 40_000)
    assert sum(late) <= 2e-3 * len(late)
    assert sum(late[1::2]) <= 2e-3 * len(late)
    # Short ones need a tenfold margin at least; of long ones nobody asks for that.
    assert beyond(0.2e-3, margin(tail, depth)) > 2e-3
    assert beyond(4e-3, margin(tail, depth)) < 4e-3 + 2 * (
        beyond(0.2e-3, margin(tail, depth)) - 0.2e-3
    )


@pytest.mark.parametrize("often", [0.005, 0.03])
def test_a_tail_that_ends_is_not_thought_to_go_on(often):
    # A processor that is taken away comes back after a time slice, and never later.
    late, tail, depth = lived(lambda draw: 4e-3 + draw.uniform(0.0, 0.3e-3), often, 6000)
    assert sum(late[2000:]) <= 2e-3 * 4000 + 2
    for typical in (0.2e-3, 4e-3):
        assert typical + 4e-3 < beyond(typical, margin(tail, depth)) < typical + 7e-3


def test_no_more_than_a_share_of_epsilon_goes_further_than_the_last_did_whatever_their_law():
    draw, tail, further = random.Random(5), Tail(), 0
    for n in range(20_000):
        residual = 0.3 * draw.betavariate(0.3, 3.0)
        if n >= 2000:
            further += residual > max(tail.highest, tail.before)
        tail = widen(tail, residual, USUAL, False, False, 1e-3)
    assert further <= 18_000 * 1e-3 + 3 * math.sqrt(18)
