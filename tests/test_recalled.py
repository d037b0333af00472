"""The plainest recall for forecasts, which the README's forecasts are compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).with_name("benchmarks")))
import recalled

DAY, EARLY, HORIZON, ROWS = 6, 60, 3, 200


@pytest.fixture
def made():
    """Rows and a pool whose forecasts leave the same path after each moment of the same kind."""
    rng = np.random.default_rng(0)
    kind = np.repeat(rng.integers(0, 2, ROWS // DAY + 1), DAY)[:ROWS]  # of each day
    z = rng.normal(0, 0.01, (ROWS, 2)) + 2.0 * kind[:, None]
    left = np.where(kind[:, None, None], 1.0, -1.0) * np.arange(1, HORIZON + 1)[None, :, None]
    pool = np.full((ROWS, HORIZON, 2), np.nan)
    for n in range(ROWS - HORIZON):
        pool[n] = z[n + 1 : n + 1 + HORIZON] - left[n]
    pool[-HORIZON:] = z[-1]
    return z, pool, left


def test_what_followed_moments_that_were_alike_is_recalled(made, monkeypatch):
    monkeypatch.setattr(recalled, "SHORT", 3)
    monkeypatch.setattr(recalled, "DAYS", 1)
    z, pool, left = made
    out = recalled.heads(z, pool, DAY, EARLY)
    late = np.arange(25 * DAY - 1, ROWS - HORIZON, DAY)  # the ends of days: of one kind
    for head in (1, 2):  # those that see the rows themselves
        np.testing.assert_allclose(out[late, head], np.repeat(left[late], 2, axis=2), atol=0.25)
    better = recalled.corrected(z, pool, out, EARLY)
    truth = z[late[:, None] + np.arange(1, HORIZON + 1)]
    error, before = (((one[late] - truth) ** 2).mean() for one in (better, pool))
    assert error < 0.3 * before


def test_recall_sees_nothing_of_the_future(made):
    z, pool, _ = made
    later = z.copy()
    later[150:] += 100.0

    def answers(z):
        return recalled.corrected(z, pool, recalled.heads(z, pool, DAY, EARLY), EARLY)

    got, other = answers(z), answers(later)
    np.testing.assert_array_equal(got[:150], other[:150])
    assert not np.allclose(got[150:], other[150:])
