import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import corrections, settings
from adaptive.corrections import CORRECTED, ENCODER, FEW, LEAST, PART_RIDGE, PARTS, RECALL, TRUNK

EXPERTS, KINDS = len(settings.EXPERTS), len(settings.KINDS)
HORIZON, CHANNELS, KEPT = 3, 2, 0.999


def moments_of(a, b, r):
    """[5] sums over samples and channels."""
    return [(p * q).sum() for p, q in ((a, a), (a, b), (b, b), (a, r), (b, r))]


def test_gains_are_the_ridge_regression_of_the_residual_on_the_corrections():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 400))
    cases = [
        0.6 * a + 0.3 * b,
        0.5 * a - 0.4 * b,  # the second would be negative: the first alone
        -0.5 * a - 0.4 * b,
        3.0 * a + 0.2 * b,  # never more than the whole correction
        0.7 * a,
    ]
    cases = [r + rng.normal(0, 0.1, 400) for r in cases]
    moments = np.array([moments_of(a, b, r) for r in cases] + [[0.0] * 5], np.float32)
    got = np.asarray(jax.jit(corrections.gains)(moments))
    for r, gain in zip(cases, got, strict=False):
        x = np.stack((a, b), axis=1)
        ridge = np.diag(np.diag(x.T @ x)) * corrections.RIDGE
        both = np.linalg.solve(x.T @ x + ridge, x.T @ r)
        alone = (x.T @ r) / np.diag(x.T @ x + ridge)
        if (both < 0).any():
            both = np.where(both < 0, 0.0, alone)
        np.testing.assert_allclose(gain, np.clip(both, 0, 1), atol=1e-3)
    np.testing.assert_array_equal(got[-1], 0.0)


def test_one_correction_counts_no_more_than_some_usual_errors_of_the_trunk():
    loss = jnp.ones((KINDS, 1, 2)).at[TRUNK, 0].set(jnp.array([0.04, 1.0]))
    got = corrections.bounded(jnp.array([[[5.0, 5.0]], [[-0.1, -3.0]]]), loss)
    np.testing.assert_allclose(got, [[[0.8, 4.0]], [[-0.1, -3.0]]], rtol=1e-6)


def test_gains_lie_between_none_and_the_whole_correction_whatever_the_moments():
    rng = np.random.default_rng(3)
    scale = 10.0 ** rng.uniform(-8, 8, (500, 3))
    a, b, r = (rng.normal(size=(500, 6)) * scale[:, k, None] for k in range(3))
    b[::3] = a[::3]  # collinear
    moments = np.array([moments_of(*row) for row in zip(a, b, r, strict=True)], np.float32)
    got = np.asarray(jax.jit(corrections.gains)(moments))
    assert np.isfinite(got).all()
    assert ((got >= 0) & (got <= 1)).all()


def matured(rng, samples, left):
    """[samples, kinds, horizon, channels] errors: each expert's and recall's own, and `left`."""
    error = rng.normal(0, 0.5, (samples, KINDS, HORIZON, CHANNELS))
    error[:, TRUNK] = rng.normal(size=(samples, HORIZON, CHANNELS))
    parts = error[:, TRUNK, None] - error[:, [*range(EXPERTS), RECALL]]
    error[:, CORRECTED] = left(parts) + rng.normal(0, 0.1, error[:, TRUNK].shape)
    return error.astype(np.float32), parts


LOSS = jnp.full((KINDS, HORIZON, CHANNELS), 100.0).at[TRUNK].set(0.64)


@jax.jit
def learned(error, known, loss):
    def one(state, row):
        return corrections.learn(state, *row, loss, jnp.float32(KEPT)), None

    return jax.lax.scan(one, corrections.init(HORIZON), (error, known))[0]


def test_shares_are_the_ridge_regression_of_what_is_left_on_the_parts_as_cut():
    rng = np.random.default_rng(4)
    share = rng.normal(0, 0.3, (PARTS, HORIZON))
    error, parts = matured(rng, 500, lambda parts: np.einsum("nphc,ph->nhc", parts, share))
    state = learned(error, np.ones((500, HORIZON, CHANNELS), np.float32), LOSS)
    got = np.asarray(jax.jit(corrections.shares)(state))
    weight = KEPT ** np.arange(499, -1, -1)
    count = weight.sum()
    for h in range(HORIZON):
        x = np.clip(parts[:, :, h], -0.8, 0.8).transpose(0, 2, 1).reshape(-1, PARTS)
        w = np.repeat(weight, CHANNELS)[:, None]
        inner = x.T @ (w * x)
        inner += np.diag(np.diag(inner)) * (PART_RIDGE + FEW * (h + 1) / count)
        cross = x.T @ (w[:, 0] * error[:, CORRECTED, h].ravel())
        wanted = np.linalg.solve(inner + LEAST * np.eye(PARTS), cross)
        np.testing.assert_allclose(got[h], wanted, atol=2e-4)


def test_what_was_not_measured_teaches_nothing():
    rng = np.random.default_rng(5)
    error, _ = matured(rng, 200, lambda parts: 0.4 * parts[:, 0])
    known = np.ones((200, HORIZON, CHANNELS), np.float32)
    gap = known.copy()
    gap[50:120] = 0.0
    through = np.where(gap[:, None] > 0, error, 0.0)
    state = learned(through, gap, LOSS)
    assert float(state.count[0]) == pytest.approx(sum(KEPT ** np.r_[0:80, 150:200]), rel=1e-3)
    without = corrections.shares(learned(error[120:], known[120:], LOSS))
    np.testing.assert_allclose(corrections.shares(state), without, atol=0.05)


def test_nothing_learned_serves_the_trunk_and_the_first_samples_little_else():
    rng = np.random.default_rng(6)
    ahead = jnp.asarray(rng.normal(size=(EXPERTS, HORIZON, CHANNELS)), jnp.float32)
    recalled, encoded = jnp.asarray(rng.normal(size=(2, HORIZON, CHANNELS)), jnp.float32)
    serve = jax.jit(corrections.serve)
    for one in serve(corrections.init(HORIZON), LOSS, ahead, recalled, encoded):
        np.testing.assert_array_equal(one, 0.0)
    error, _ = matured(rng, 3, lambda parts: 0.9 * parts[:, 0])
    state = learned(error, np.ones((3, HORIZON, CHANNELS), np.float32), LOSS)
    most = np.abs(corrections.shares(state)).max(axis=1)
    assert most[0] < 0.15
    assert most[-1] < 0.06  # further ahead fewer horizons have been seen


def test_what_is_served_is_the_trunk_with_all_corrections_each_within_its_bounds():
    rng = np.random.default_rng(7)
    error, _ = matured(rng, 300, lambda parts: 0.5 * parts[:, 1] - 0.4 * parts[:, -1])
    error[:, ENCODER] = 0.5 * error[:, TRUNK]
    state = learned(error, np.ones((300, HORIZON, CHANNELS), np.float32), LOSS)
    ahead = rng.normal(0, 3, (EXPERTS, HORIZON, CHANNELS)).astype(np.float32)
    recalled, encoded = rng.normal(size=(2, HORIZON, CHANNELS)).astype(np.float32)
    corrected, served = jax.jit(corrections.serve)(state, LOSS, ahead, recalled, encoded)
    gain, share = corrections.gains(state.moments), np.asarray(corrections.shares(state))
    wanted = gain[:, :1] * recalled + gain[:, 1:] * encoded
    np.testing.assert_allclose(corrected, wanted, rtol=1e-5, atol=1e-6)
    assert (share[:, 1] > 0.2).all()
    assert (share[:, -1] < -0.1).all()
    parts = np.clip(np.concatenate((ahead, recalled[None])), -0.8, 0.8)
    wanted = wanted + np.einsum("hp,phc->hc", share, parts)
    np.testing.assert_allclose(served, wanted, rtol=1e-4, atol=1e-5)
    counted = corrections.counted(state)
    wanted = gain + np.stack((share[:, -1], 0 * share[:, 0]), axis=1)
    np.testing.assert_allclose(counted, wanted, rtol=1e-5)


def test_shares_are_finite_whatever_the_errors():
    rng = np.random.default_rng(8)
    error, _ = matured(rng, 400, lambda parts: parts[:, 0])
    error *= (10.0 ** rng.uniform(-8, 1, (400, 1, 1, 1))).astype(np.float32)
    error[:, 2] = error[:, 1]  # collinear
    error[:, 4] = error[:, TRUNK]  # one that is the trunk
    for loss in (LOSS, 0 * LOSS, 1e12 * LOSS):
        state = learned(error, np.ones((400, HORIZON, CHANNELS), np.float32), loss)
        assert np.isfinite(corrections.shares(state)).all()
