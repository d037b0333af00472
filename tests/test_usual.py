import json

import numpy as np
import pytest

from adaptive import usual
from adaptive.usual import Usual


def by_hand(values):
    """How far the last value lies above those before, without a histogram."""
    logs = np.log(np.sqrt(np.square(values) + usual.LEAST**2))
    weight = [1.0]
    for n in range(1, len(values) - 1):
        weight.append(weight[-1] * (1 + max((usual.FORGETTING - 1) / n, 1 / usual.LONGEST)))
    order = np.argsort(logs[:-1])
    share = np.cumsum(np.array(weight)[order]) / np.sum(weight)
    at = [logs[order][np.searchsorted(share, q)] for q in (0.5, 0.25, 0.9)]
    spread = max((at[0] - at[1]) / 0.6745, 0.3 * (at[2] - at[0]), usual.LEAST_SPREAD)
    return (logs[-1] - at[0]) / spread


@pytest.mark.parametrize("many", [50, 400, 5000])
@pytest.mark.parametrize("last", [0.0, 0.3, 1.0, 40.0])
def test_the_distance_is_from_the_weighted_median_in_the_spread_of_the_lower_half(many, last):
    values = [*np.random.default_rng(0).exponential(size=many), last]
    one = Usual()
    above = [one.above(float(value)) for value in values][-1]
    assert above == pytest.approx(by_hand(values), rel=0.05, abs=0.15)
    assert one.trust == pytest.approx((many + 1) / (many + 1 + usual.UNSURE))


def test_what_lasts_a_third_of_the_time_still_stands_out():
    rng, one = np.random.default_rng(1), Usual()
    quiet, loud = rng.lognormal(0, 0.3, 600), rng.lognormal(2, 0.3, 300)
    before = [one.above(float(value)) for value in quiet]
    during = [one.above(float(value)) for value in loud]
    assert np.quantile(during, 0.1) > np.quantile(before, 0.99)


def test_a_thing_that_never_moved_stands_out_when_it_does():
    one = Usual()
    assert all(one.above(0.0) == pytest.approx(0.0, abs=0.1) for _ in range(1000))
    assert one.above(1.0) > 5


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300])
def test_no_value_is_too_small_or_too_large(value):
    one = Usual()
    for known in np.random.default_rng(2).exponential(size=200):
        one.above(float(known))
    assert np.isfinite(one.above(value))


@pytest.mark.slow
def test_weights_that_grow_are_scaled_back_without_a_jump():
    rng, one = np.random.default_rng(3), Usual()
    one.weight = usual.RESCALE_AT / 3
    one.number = 10.0
    other = Usual()
    other.number = 10.0
    for value in rng.exponential(size=3000):
        assert one.above(float(value)) == pytest.approx(other.above(float(value)), abs=1e-6)
    assert one.weight < usual.RESCALE_AT / 100


def test_it_goes_on_where_it_was_saved():
    rng, one, other = np.random.default_rng(4), Usual(), Usual()
    for value in rng.exponential(size=700):
        one.above(float(value))
    other.restore(json.loads(json.dumps(one.snapshot())))
    for value in rng.exponential(size=300):
        assert one.above(float(value)) == other.above(float(value))
