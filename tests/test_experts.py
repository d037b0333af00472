from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptive import drift, experts, seasons, settings

HORIZON, CHANNELS, SCALE = 3, 2, 1.5
LAGS = experts.reach(HORIZON)
LEVEL, SEASON = (0.5, -1.0), 8


def seen_at(window, n, scale, since=drift.NEVER):
    """What the experts see at sample `n`: levels and the season do not matter to the algebra."""
    ones = jnp.ones(CHANNELS, jnp.float32)
    season = seasons.init(SEASON, CHANNELS)._replace(
        lag=jnp.int32(SEASON),
        phase=(n % SEASON) / jnp.float32(SEASON),
        level=jnp.asarray(LEVEL, jnp.float32),
    )
    change = drift.State(jnp.float32(0.0), jnp.int32(since))
    return experts.Recent(window, 0.1 * ones, scale * ones, season, change)


@jax.jit
def trained(values, known, scale, changed=drift.NEVER):
    """Take a whole stream [T, C] through the trunk; return it after every sample.

    It is told of a change at row `changed`.
    """
    held = jnp.concatenate((jnp.broadcast_to(values[0], (LAGS, CHANNELS)), values))

    def one(state, n):
        since = jnp.where(n >= changed, n - changed + drift.FRESH, drift.NEVER)
        recent = seen_at(lax.dynamic_slice_in_dim(held, n + 1, LAGS), n, scale, since)
        past = held[LAGS + n - 1 - jnp.arange(HORIZON)]
        there = known[n] * (jnp.arange(HORIZON) < n)[:, None]
        state = experts.step(state, n, recent, past, there)
        return state, tuple(one.weights for one in state)

    # Only the end of the stream is kept, a moment apart, to see when a truth takes effect.
    return lax.scan(one, experts.init(CHANNELS, HORIZON), jnp.arange(len(values)))


def long_rows(values, n):
    """[C, lags] differences to the newest value, the newest one 1, in float64."""
    at = np.maximum(np.arange(n - LAGS + 1, n + 1), 0)
    change = np.clip((values[at] - values[n]) / SCALE, -experts.CLIP, experts.CLIP)
    change[-1] = 1.0
    return change.T


def joint_row(values, n):
    """[1, numbers] one, the place in the season, values and levels of all channels."""
    angle = 2 * np.pi * (n % SEASON) / SEASON * np.arange(1, experts.HARMONICS + 1)
    values = [values[max(n - lag, 0)] for lag in experts.JOINT_LAGS]
    values = (np.concatenate((*values, LEVEL)) - 0.1) / SCALE
    values = np.clip(values, -experts.CLIP, experts.CLIP)
    return np.concatenate(([1.0], np.sin(angle), np.cos(angle), values))[None]


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
    _, weights = trained(values.astype(np.float32), known, SCALE)
    return values, *map(np.asarray, weights)


@pytest.mark.parametrize("step", range(1, HORIZON + 1))
def test_every_step_is_the_exact_batch_solution_of_exactly_the_truths_that_have_arrived(
    stream, step
):
    values, long, slow, fast = stream
    newest = len(values) - 1
    # Lags and gains are of all moments from the first on; a truth is there `step` samples later.
    moments = range(0, newest - step + 1)
    change = np.array([values[n + step] - values[n] for n in moments]) / SCALE
    change = np.clip(change, -experts.CLIP, experts.CLIP)
    rows = np.array([long_rows(values, n) for n in moments])
    rest = np.array([joint_row(values, n) for n in moments])
    # Steps come last first.
    long, slow, fast = (np.moveaxis(one[:, ::-1], 1, -1) for one in (long, slow, fast))
    cases = [(long[:, 0], rows, change, experts.LONG_FORGETTING)]
    for joint, lasts in ((slow, experts.SLOW), (fast, 1)):
        forgetting = 1 - 1 / (lasts * experts.LEAST_MEMORY)
        cases += [(joint[:, c], rest, change[:, [c]], forgetting) for c in range(CHANNELS)]
    for weights, regressors, targets, forgetting in cases:
        g, earlier = (weights[n, :, step - 1] for n in (newest, newest - 1))
        w, b = (
            ridge(regressors[:end], targets[:end], forgetting) for end in (len(rows), len(rows) - 1)
        )
        largest = np.abs(w).max()
        np.testing.assert_allclose(g, w, atol=2e-3 * largest)
        np.testing.assert_allclose(earlier, b, atol=2e-3 * largest)
        # The newest truth is what tells them apart.
        moved = w - b
        assert np.abs((g - earlier) - moved).max() < 0.1 * np.abs(moved).max()


def test_a_truth_that_is_missing_teaches_nothing(stream):
    values, *before = stream
    known = np.ones((len(values), CHANNELS), np.float32)
    known[300:] = 0.0
    _, silent = trained(values.astype(np.float32), known, SCALE)
    for one, learned in zip(silent, before, strict=True):
        np.testing.assert_array_equal(one[:300], learned[:300])
        assert (np.asarray(one[300:]) == np.asarray(one[299])).all()


def test_after_a_change_the_fast_forecaster_is_soon_that_of_the_new_stream():
    rng, change = np.random.default_rng(5), 1500
    values = np.zeros((change + 400, CHANNELS))
    for n in range(2, len(values)):
        first, second = (1.6, -0.8) if n < change else (0.3, -0.6)
        values[n] = first * values[n - 1] + second * values[n - 2] + rng.normal(0, 1, CHANNELS)
    # The weights of lags 1 and 0 in the change of channel 0, against what they should be.
    at = 1 + 2 * experts.HARMONICS + np.array([CHANNELS, 0])
    values, known = values.astype(np.float32), np.ones((len(values), CHANNELS), np.float32)
    off = []
    for told in (change + 20, drift.NEVER):
        _, (_, _, fast) = trained(values, known, SCALE, told)
        off.append(np.abs(np.asarray(fast)[-1, -1, 0, at] - (-0.6, -0.7)).max())
    assert off[0] < 0.4 < 0.8 < off[1]


@pytest.mark.parametrize("channels", [1, 2, 7, 38, 59, 60, 500])
def test_what_the_joint_forecaster_sees_of_many_channels_is_bounded(channels):
    lags = experts.joint_lags(channels)
    assert lags == experts.JOINT_LAGS[: len(lags)]
    numbers = jax.eval_shape(partial(experts.init, channels, 1)).fast.weights.shape[-1]
    assert numbers <= experts.MOST
    assert (len(lags) == 8) == (channels <= 13)
    assert (len(lags) == 0) == (channels > 59)
    window = jnp.zeros((LAGS, channels))
    zeros = jnp.zeros(channels)
    recent = experts.Recent(window, zeros, zeros + 1, seasons.init(8, channels), drift.init())
    got = np.asarray(experts.joint_regressors(recent))
    assert got.shape == (1, numbers)
    np.testing.assert_array_equal(got[0, 1 : 1 + 2 * experts.HARMONICS], 0.0)  # no season


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
            recent = seen_at(lax.dynamic_slice_in_dim(held, n + 1, 96), n, 1.0)
            past = held[96 + n - 1 - jnp.arange(HORIZON)]
            season = jnp.zeros((HORIZON, CHANNELS), jnp.float32)
            ahead = experts.forecast(state, recent, season, season[:, None])
            state = experts.step(state, n, recent, past, known[n][None] * jnp.ones((3, 1)))
            target = held[jnp.minimum(96 + n + 1, len(held) - 1)]
            late = jnp.abs(ahead[3:, 0] - target)  # of the regressions
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
        diagonal = (np.asarray(regression.root, np.float64) ** 2).sum(axis=1)
        assert 0 < diagonal.min() <= diagonal.max() < 1.2 * experts.LARGEST
    # The last stretch is a plain sine again, where persistence is wrong by 0.07.
    assert float(np.min(wrong)) < 0.02


def test_weights_of_experts_sum_to_one_and_follow_their_losses():
    loss = np.random.default_rng(3).uniform(0.1, 2.0, (5, HORIZON, CHANNELS))
    weigh = jax.jit(experts.weights)
    got = np.asarray(weigh(jnp.asarray(loss, jnp.float32)))
    raised = np.exp(-experts.SHARPNESS * (loss - loss.min(axis=0)) / loss.min(axis=0))
    np.testing.assert_allclose(got, raised / raised.sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(got.sum(axis=0), 1.0, rtol=1e-6)
    assert (np.argsort(got, axis=0)[::-1] == np.argsort(loss, axis=0)).all()
    scaled = weigh(jnp.asarray(1e-6 * loss, jnp.float32))
    np.testing.assert_allclose(scaled, got, rtol=1e-3)  # no unit
    np.testing.assert_allclose(weigh(jnp.zeros((5, HORIZON, CHANNELS))), 0.2, rtol=1e-6)


def test_a_trunk_that_has_seen_nothing_forecasts_persistence_or_the_season():
    window = jnp.asarray(np.random.default_rng(4).normal(size=(96, CHANNELS)), jnp.float32)
    season = jnp.arange(HORIZON * CHANNELS, dtype=jnp.float32).reshape(HORIZON, CHANNELS)
    recent = seen_at(window, jnp.int32(3), 1.0)
    profiles = jnp.stack((season + 1, season + 2), axis=1)
    untaught = experts.init(CHANNELS, HORIZON)
    got = jax.jit(experts.forecast)(untaught, recent, season, profiles)
    known = {"seasonal": season, "profile-fast": season + 1, "profile-slow": season + 2}
    for number, name in enumerate(settings.EXPERTS):
        wanted = known.get(name, np.tile(window[-1], (HORIZON, 1)))
        np.testing.assert_allclose(got[number], wanted, atol=1e-5)
