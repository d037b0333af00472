from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import analogues, ring

MEMORY, HORIZON, CHANNELS, SEASONS = 64, 3, 2, 8
remember = jax.jit(analogues.remember)
attend = jax.jit(analogues.attend)
candidates = jax.jit(partial(analogues.candidates, memory=MEMORY))


def lived(rng, many, start=0):
    """A memory of `many` moments; their paths, newest values, and the errors that followed."""
    state, count = analogues.init(MEMORY, HORIZON, CHANNELS), jnp.int32(start - 1)
    path = rng.normal(size=(many, HORIZON, CHANNELS))
    newest = rng.normal(size=(many, analogues.VALUES, CHANNELS))
    errors = rng.normal(size=(many, HORIZON, CHANNELS))
    key = None
    for n in range(many):
        count = ring.advance(count)
        late = errors[n - HORIZON] if n >= HORIZON else np.zeros((HORIZON, CHANNELS))
        state, key = remember(state, count, *(jnp.asarray(a) for a in (path[n], newest[n], late)))
    return state, count, key, path, newest, errors


def by_hand(theta, lags, path, newest, errors):
    """The correction in float64."""
    now, out = len(path) - 1, np.zeros((HORIZON, CHANNELS))
    logit = np.zeros((len(lags), CHANNELS))
    for k, lag in enumerate(lags):
        own = ((path[now - lag] - path[now]) ** 2).mean(axis=0)
        values = (newest[now - lag] - newest[now]) ** 2
        late, early = (
            part.mean(axis=0) for part in (values[-analogues.NEWEST :], values[: -analogues.NEWEST])
        )
        distance = np.stack((own, late, early, np.full(CHANNELS, own.mean())))
        logit[k] = -np.exp(theta[:-1]) @ distance - np.exp(theta[-1]) * lag / analogues.FULL
    weight = np.exp(logit - logit.max(axis=0))
    weight /= weight.sum(axis=0)
    for k, lag in enumerate(lags):
        out += weight[k] * errors[now - lag]
    return out, weight


# The last start lies just before the counter wraps.
@pytest.mark.parametrize("start", [0, 2 * ring.WRAP - 50])
@pytest.mark.parametrize("season", [1, 4, 9])
def test_what_is_recalled_is_a_softmax_over_seasons_and_near_moments_and_so_are_its_slopes(
    season, start
):
    state, count, key, *past = lived(np.random.default_rng(season), 3 * MEMORY, start)
    near = jnp.array([7, 0, 2, 7, MEMORY - 1, MEMORY, 0, 7], jnp.int32)
    among = candidates(state, count, jnp.int32(season), near)
    wanted = [season * k for k in range(1, SEASONS + 1)] + [7, 2, MEMORY - 1]
    wanted = [lag for lag in wanted if HORIZON <= lag < MEMORY]
    assert [int(a) for a, may in zip(among.lag, among.may, strict=True) if may] == wanted
    # A penalty on age that can be told from none within so few samples.
    theta = np.array([0.3, -1.0, -0.8, -0.2, 3.0])
    params = analogues.Params(jnp.asarray(theta[:-1], jnp.float32), jnp.float32(theta[-1]))
    rows, out = attend(params, state, count, key, among)
    expected, weight = by_hand(theta, wanted, *past)
    np.testing.assert_allclose(out[0], expected, atol=2e-2)  # eight bits
    np.testing.assert_allclose(rows[0].sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(rows[0][np.asarray(among.may) > 0], weight, atol=1e-2)
    for k, step in enumerate(1e-5 * np.eye(len(theta))):
        ends = [by_hand(theta + sign * step, wanted, *past)[0] for sign in (1, -1)]
        np.testing.assert_allclose(out[1 + k], (ends[0] - ends[1]) / 2e-5, atol=3e-2)
    lag, share = analogues.shown(rows[0], among)
    mean = weight.mean(axis=1)
    best = np.argsort(-mean)[: analogues.SHOWN]
    assert [int(one) for one in lag] == [wanted[k] for k in best]
    np.testing.assert_allclose(share, mean[best], atol=1e-2)


def test_nothing_is_recalled_of_moments_that_were_not_or_whose_errors_are_not_known():
    state, count, key, *_ = lived(np.random.default_rng(1), 9)
    among = candidates(state, count, jnp.int32(10), jnp.array([1, 2, 0, 9], jnp.int32))
    assert not np.asarray(among.may).any()
    rows, out = attend(analogues.init_params(), state, count, key, among)
    np.testing.assert_array_equal(rows, 0.0)
    np.testing.assert_array_equal(out, 0.0)
    lag, weight = analogues.shown(rows[0], among)
    assert not np.asarray(lag).any()
    assert not np.asarray(weight).any()


@pytest.mark.parametrize("horizon", [1, 2, 14, 15, 96, 1000])
def test_a_path_is_compared_at_few_steps_from_the_first_to_the_last(horizon):
    at = analogues.points(horizon)
    assert (at[0], at[-1]) == (0, horizon - 1)
    assert (np.diff(at) > 0).all()
    assert min(horizon, 7) <= len(at) <= analogues.POINTS


def test_absurd_values_leave_everything_finite():
    state = analogues.init(MEMORY, HORIZON, CHANNELS)
    absurd = jnp.full((HORIZON, CHANNELS), 1e30)
    newest = jnp.full((analogues.VALUES, CHANNELS), -1e30)
    for n in range(12):
        state, key = remember(state, jnp.int32(n), absurd * (n % 2), newest, 0 * absurd)
    among = candidates(state, jnp.int32(11), jnp.int32(1), jnp.zeros(0, jnp.int32))
    rows, out = attend(analogues.init_params(), state, jnp.int32(11), key, among)
    assert np.isfinite(rows).all()
    assert np.isfinite(out).all()
