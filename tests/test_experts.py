from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptive import experts, ring, settings

HORIZON, CHANNELS, SCALE = 3, 2, 1.5
FAMILIES = experts.families(HORIZON)


@jax.jit
def trained(values, known, scale):
    """Take a whole stream [T, C] through the trunk; return it after every sample."""
    lags = FAMILIES[0].lags
    held = jnp.concatenate((jnp.broadcast_to(values[0], (lags, CHANNELS)), values))

    def one(state, n):
        window = lax.dynamic_slice_in_dim(held, n + 1, lags)
        past = held[lags + n - 1 - jnp.arange(HORIZON)]
        there = known[n] * (jnp.arange(HORIZON) < n)[:, None]
        state = experts.step(state, n, window, scale, past, there)
        return state, tuple(one.weights for one in state)

    # Only the end of the stream is kept, a moment apart, to see when a truth takes effect.
    return lax.scan(one, experts.init(CHANNELS, HORIZON), jnp.arange(len(values)))


def regressors(values, n, lags):
    """[C, lags] differences to the newest value, the newest one 1, in float64."""
    at = np.maximum(np.arange(n - lags + 1, n + 1), 0)
    change = np.clip((values[at] - values[n]) / SCALE, -experts.CLIP, experts.CLIP)
    change[-1] = 1.0
    return change.T


def ridge(rows, targets, forgetting):
    """The exact solution: moments weigh less with age, the prior (identity) as much as all do.

    Args:
        rows: [T, R, L] of every moment whose truth has arrived.
        targets: [T, R].
    """
    moments, _, lags = rows.shape
    weight = forgetting ** np.arange(moments - 1, -1, -1.0)
    inverse = forgetting**moments * np.eye(lags)
    inverse += np.einsum("t,trl,trk->lk", weight, rows, rows)
    return np.linalg.solve(inverse, np.einsum("t,trl,tr->l", weight, rows, targets))


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    values = np.zeros((420, CHANNELS))
    for n in range(2, len(values)):
        values[n] = 1.6 * values[n - 1] - 0.8 * values[n - 2] + rng.normal(0, 1, CHANNELS)
        values[n, 1] += 0.2 * values[n - 1, 0]
    known = np.ones((len(values), CHANNELS), np.float32)
    _, weights = trained(values.astype(np.float32), known, jnp.full(CHANNELS, SCALE))
    return values, *map(np.asarray, weights)


@pytest.mark.parametrize("step", range(1, HORIZON + 1))
def test_every_step_is_the_exact_batch_solution_of_exactly_the_truths_that_have_arrived(
    stream, step
):
    values, *weights = stream
    newest = len(values) - 1
    # Lags and gains are of all moments from the first on; a truth is there `step` samples later.
    moments = range(0, newest - step + 1)
    rows = np.array([regressors(values, n, FAMILIES[0].lags) for n in moments])
    change = np.array([values[n + step] - values[n] for n in moments]) / SCALE
    change = np.clip(change, -experts.CLIP, experts.CLIP)
    got = [group for one in weights for group in one[newest, :, :, step - 1]]
    without = [group for one in weights for group in one[newest - 1, :, :, step - 1]]
    every = [slice(None)]
    wanted, before = (
        [
            ridge(rows[:end, one, -family.lags :], change[:end, one], family.forgetting)
            for family in FAMILIES
            for one in (every if family.shared else [slice(c, c + 1) for c in range(CHANNELS)])
        ]
        for end in (len(rows), len(rows) - 1)
    )
    for g, w, earlier, b in zip(got, wanted, without, before, strict=True):
        largest = np.abs(w).max()
        np.testing.assert_allclose(g, w, atol=2e-3 * largest)
        np.testing.assert_allclose(earlier, b, atol=2e-3 * largest)
        # The newest truth is what tells them apart.
        moved = w - b
        assert np.abs((g - earlier) - moved).max() < 0.1 * np.abs(moved).max()


def test_a_truth_that_is_missing_teaches_nothing(stream):
    values, shared, *_ = stream
    known = np.ones((len(values), CHANNELS), np.float32)
    known[300:] = 0.0
    _, (silent, short, own) = trained(values.astype(np.float32), known, jnp.full(CHANNELS, SCALE))
    np.testing.assert_array_equal(silent[:300], shared[:300])
    assert (np.asarray(silent[300:]) == np.asarray(silent[299])).all()
    for one in (short, own):
        assert (np.asarray(one[300:]) == np.asarray(one[299])).all()


@pytest.mark.slow
def test_a_hundred_thousand_hard_samples_leave_everything_finite_and_able_to_learn():
    rng = np.random.default_rng(1)
    n = np.arange(100_000)
    values = np.stack((np.sin(n / 9.0), np.sin(n / 9.0)), axis=1)  # collinear, no noise
    values[10_000:20_000] += rng.normal(size=(10_000, 2))
    values[20_000:60_000] = 3.0  # no excitation for twenty memories
    values[60_000:70_000] = rng.standard_cauchy((10_000, 2))
    values[70_000:80_000:7] += 1e6  # spikes
    values[80_000:90_000, 1] = 2 * values[80_000:90_000, 0]
    known = np.ones((len(n), CHANNELS), np.float32)

    @jax.jit
    def run(values, known):
        held = jnp.concatenate((jnp.broadcast_to(values[0], (96, CHANNELS)), values))

        def one(carry, n):
            state, finite, wrong = carry
            window = lax.dynamic_slice_in_dim(held, n + 1, 96)
            past = held[96 + n - 1 - jnp.arange(HORIZON)]
            scale = jnp.ones(CHANNELS, jnp.float32)
            season = jnp.zeros((HORIZON, CHANNELS), jnp.float32)
            ahead = experts.forecast(state, window, season, scale)
            state = experts.step(state, n, window, scale, past, known[n][None] * jnp.ones((3, 1)))
            target = held[jnp.minimum(96 + n + 1, len(held) - 1)]
            late = jnp.abs(ahead[2:, 0] - target)  # of the regressions
            wrong = jnp.where(n >= len(values) - 1000, wrong + late / 1000, wrong)
            # What is not finite in the weights stays there; the rest is looked at in the end.
            for one in state:
                finite &= jnp.isfinite(one.weights).all()
            return (state, finite, wrong), None

        start = experts.init(CHANNELS, HORIZON), jnp.bool(True), jnp.zeros((3, CHANNELS))
        return lax.scan(one, start, jnp.arange(len(values)))[0]

    state, finite, wrong = run(values.astype(np.float32), known)
    assert bool(finite)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    for regression in state:
        for covariance in np.asarray(regression.covariance, np.float64):
            np.testing.assert_allclose(covariance, covariance.T)
            assert np.diagonal(covariance).min() > 0
            assert np.trace(covariance) / len(covariance) < 2 * experts.COVARIANCE_CAP
    # The last stretch is a plain sine again, where persistence is wrong by 0.07.
    assert float(np.min(wrong)) < 0.02


def distance_by_lag(values, lags):
    """Mean squared distance to the value each lag ago, over the variance, lag `lags` first."""
    apart = [np.mean((values[lag:] - values[:-lag]) ** 2) for lag in range(lags, 0, -1)]
    return jnp.asarray(np.array(apart) / max(np.var(values), 1e-12), jnp.float32)


def test_the_season_of_a_daily_pattern_is_found_and_none_where_there_is_none():
    rng, n = np.random.default_rng(2), np.arange(2000)
    known = jnp.ones(256, jnp.float32)
    daily = np.sin(2 * np.pi * n / 24) + 0.5 * (n % 24 < 5) + rng.normal(0, 0.2, len(n))
    find = jax.jit(experts.seasonal_lag)
    assert int(find(distance_by_lag(daily, 256), known)) == 24
    assert int(find(distance_by_lag(rng.normal(size=2000), 256), known)) == 0
    assert int(find(distance_by_lag(np.full(2000, 3.0), 256), known)) == 0
    # Seasons that were hardly compared yet do not count.
    assert int(find(distance_by_lag(daily, 256), 0.4 * known)) == 0
    week = daily + 1.0 * (n // 24 % 7 < 2)
    assert int(find(distance_by_lag(week, 256), known)) == 168
    slow = np.sin(2 * np.pi * n / 97) + rng.normal(0, 0.05, len(n))
    assert int(find(distance_by_lag(slow, 256), known)) == 97
    short = jnp.where(jnp.arange(256, 0, -1) < 20, 1.0, 0.0)
    assert int(find(distance_by_lag(daily, 256), short)) == 0


def test_weights_of_experts_sum_to_one_and_follow_their_losses():
    loss = np.random.default_rng(3).uniform(0.1, 2.0, (5, HORIZON, CHANNELS))
    weigh = jax.jit(experts.weights)
    got = np.asarray(weigh(jnp.asarray(loss, jnp.float32)))
    raised = np.exp(-2.0 * 5 * (loss - loss.min(axis=0)) / loss.mean(axis=0))
    np.testing.assert_allclose(got, raised / raised.sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(got.sum(axis=0), 1.0, rtol=1e-6)
    assert (np.argsort(got, axis=0)[::-1] == np.argsort(loss, axis=0)).all()
    scaled = weigh(jnp.asarray(1e-6 * loss, jnp.float32))
    np.testing.assert_allclose(scaled, got, rtol=1e-3)  # no unit
    np.testing.assert_allclose(weigh(jnp.zeros((5, HORIZON, CHANNELS))), 0.2, rtol=1e-6)


@pytest.mark.parametrize("lag", [1, 2, 5, 7])
def test_a_season_is_read_as_few_whole_seasons_ago_as_lie_in_the_past(lag):
    values, plain = ring.init(16, 1), np.arange(40.0)
    push = jax.jit(ring.push)
    for n, x in enumerate(plain):
        values = push(values, jnp.int32(n), jnp.float32([x]))
    season = partial(experts.season_of, horizon=9)
    got = jax.jit(season)(values, jnp.int32(39), jnp.int32(lag))
    for step in range(1, 10):
        at = 39 + step
        while at > 39:
            at -= lag
        assert float(got[step - 1, 0]) == plain[at]


def test_a_trunk_that_has_seen_nothing_forecasts_persistence_or_the_season():
    window = jnp.asarray(np.random.default_rng(4).normal(size=(96, CHANNELS)), jnp.float32)
    season = jnp.arange(HORIZON * CHANNELS, dtype=jnp.float32).reshape(HORIZON, CHANNELS)
    got = jax.jit(experts.forecast)(
        experts.init(CHANNELS, HORIZON), window, season, jnp.ones(CHANNELS, jnp.float32)
    )
    for number, name in enumerate(settings.EXPERTS):
        wanted = season if name == "seasonal" else np.tile(window[-1], (HORIZON, 1))
        np.testing.assert_allclose(got[number], wanted, atol=1e-6)
