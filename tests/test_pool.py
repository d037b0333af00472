"""The pool of linear forecasters that the README's forecasts are compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).with_name("benchmarks")))
import pool

DAY, FIRST, HORIZON = 8, 80, 3


@pytest.fixture
def z():
    """Two channels of an autoregression."""
    rng, values = np.random.default_rng(0), np.zeros((160, 2))
    for n in range(2, len(values)):
        values[n] = 1.5 * values[n - 1] - 0.7 * values[n - 2] + rng.normal(size=2)
    return values


@pytest.mark.parametrize("forgetting", [1.0, 0.97])
def test_each_day_begins_with_the_ridge_solution_of_all_samples_whose_truth_is_known(z, forgetting):
    lags, begin = 5, FIRST + 3 * DAY
    got = pool.linear(z, HORIZON, lags, forgetting, DAY, FIRST)
    assert np.isnan(got[: FIRST - 1]).all()
    # Row by row, as the formula says.
    newest = begin - HORIZON - 1
    origins = np.arange(lags - 1, newest + 1)
    x = np.stack([z[n - lags + 1 : n + 1] - z[n] for n in origins]).swapaxes(1, 2)
    y = np.stack([z[n + 1 : n + 1 + HORIZON] - z[n] for n in origins]).swapaxes(1, 2)
    weight = forgetting ** (newest - origins.astype(float))
    inner = np.einsum("n,ncl,nck->lk", weight, x, x)
    inner += pool.RIDGE * np.trace(inner) / lags * np.eye(lags)
    solved = np.linalg.solve(inner, np.einsum("n,ncl,nch->lh", weight, x, y))
    for origin in (begin - 1, begin - 2 + DAY):
        now = (z[origin - lags + 1 : origin + 1] - z[origin]).T
        wanted = (now @ solved).T + z[origin]
        np.testing.assert_allclose(got[origin], wanted, rtol=1e-4, atol=1e-5)


def test_the_pool_sees_nothing_of_the_future(z):
    def forecasts(z):
        experts = [pool.linear(z, HORIZON, 5, 1.0, DAY, FIRST), *pool.naive(z, HORIZON, DAY)]
        return pool.mixed(z, experts, FIRST)

    later = z.copy()
    later[120:] += 100.0
    np.testing.assert_array_equal(forecasts(z)[:120], forecasts(later)[:120])
    assert not np.allclose(forecasts(z)[120:], forecasts(later)[120:])


def test_the_pool_follows_the_best_of_its_forecasters(z):
    exact = np.stack([np.roll(z, -step, axis=0) for step in range(1, HORIZON + 1)], axis=1)
    wrong = np.repeat(z[:, None], HORIZON, axis=1)
    got = pool.mixed(z, [wrong.astype(np.float32), exact.astype(np.float32)], FIRST)
    np.testing.assert_allclose(got[FIRST - 1], (wrong + exact)[FIRST - 1] / 2, rtol=1e-5)
    late = slice(FIRST + 10, -HORIZON)
    np.testing.assert_allclose(got[late], exact[late], atol=0.02)


def test_what_comes_before_is_a_whole_number_of_days_ago(z):
    held, before = pool.naive(z, HORIZON, 2)
    for step in range(1, HORIZON + 1):
        np.testing.assert_array_equal(held[50, step - 1], z[50].astype(np.float32))
        wanted = z[50 + step - 2 * -(-step // 2)].astype(np.float32)
        np.testing.assert_array_equal(before[50, step - 1], wanted)
