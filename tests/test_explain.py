from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import analogues, experts, explain, model, recall, ring
from adaptive.model import Shape
from adaptive.settings import EXPERTS, Level

SHAPE = Shape(channels=2, horizon=2, memory=512, window=6, dim=8, heads=2, origins=8)
LEVEL = Level("recall", memory=512, window=0, heads=0)
PARAMS = model.init_params(np.random.default_rng(0), SHAPE)


@pytest.fixture(scope="module")
def state():
    """A stream with a season, and half-days of another level on some days, in one of them now."""
    rng, n = np.random.default_rng(1), np.arange(1500)
    bumps = np.where((n % 24 < 12) & (rng.random(1500) < 0.4)[n // 24 * 24], 3.0, 0.0)
    day = np.sin(2 * np.pi * n / 24)
    values = np.stack((day + bumps, day**3), axis=1) + rng.normal(0, 0.1, (1500, 2))

    @jax.jit
    def lived(values):
        def one(state, x):
            return model.step(PARAMS, state, x, jnp.ones_like(x), LEVEL)[0], None

        return jax.lax.scan(one, model.init(PARAMS, SHAPE), values)[0]

    return lived(jnp.asarray(values, jnp.float32))


@pytest.fixture(scope="module")
def found(state):
    return jax.jit(explain.effects, static_argnums=2)(PARAMS, state, LEVEL)


def correction(state, masked=None):
    """What is served of recall's correction, with one moment masked out before the softmax."""
    near = recall.nearest(recall.distances(state.far, state.count, LEVEL.memory))
    lags = jnp.where(jnp.isfinite(near.distance), near.lag, 0).ravel()
    memory = state.memory
    among = analogues.candidates(memory, state.count, state.season, lags, LEVEL.memory)
    if masked is not None:
        among = among._replace(may=among.may.at[masked].set(0.0))
    key = memory.keys.rows[0, 0, ring.row(memory.keys, state.count)].astype(jnp.float32)
    out = analogues.attend(PARAMS.recall, memory, state.count, key, among)[1]
    return out[0] * model.gains(state.moments)[:, :1]


def test_the_effect_of_a_moment_is_what_masking_it_out_changes(state, found):
    assert int(state.season) == 24
    asked = jax.jit(partial(correction, state))
    whole, weight = np.asarray(asked()), np.asarray(found.weight)
    assert weight.sum() == pytest.approx(1.0, rel=1e-5)
    for k in np.argsort(-weight)[[0, 1, 2, 5, 9]]:
        wanted = np.abs(whole - asked(jnp.int32(k))).mean()
        assert found.effect[k] == pytest.approx(wanted, rel=1e-2, abs=1e-6)


def test_without_the_most_attended_the_answer_moves_more_than_without_the_least(state, found):
    asked = jax.jit(partial(correction, state))
    whole, weight = asked(), np.asarray(found.weight)
    there = np.flatnonzero(weight > 0)
    order = there[np.argsort(-weight[there])]
    for many in (1, 3, 5):
        most, least = (
            np.abs(whole - asked(jnp.asarray(some))).mean()
            for some in (order[:many], order[-many:])
        )
        assert most > 2 * least


def test_the_effect_of_an_expert_is_what_the_others_would_say_without_it(state, found):
    trust = np.asarray(experts.weights(state.loss[: len(EXPERTS)]), np.float64)
    ahead = np.asarray(state.made[:, : len(EXPERTS)], np.float64).transpose(1, 0, 2)
    scale = np.sqrt(np.asarray(state.variance, np.float64))
    trunk = (trust * ahead).sum(axis=0)
    for k in range(len(EXPERTS)):
        others = np.delete(trust, k, axis=0)
        rest = (others * np.delete(ahead, k, axis=0)).sum(axis=0) / others.sum(axis=0)
        wanted = np.abs((trunk - rest) / scale).mean()
        assert found.expert_effect[k] == pytest.approx(wanted, rel=1e-2, abs=1e-5)
    np.testing.assert_allclose(found.expert_weight, trust.mean(axis=(1, 2)), rtol=1e-4)


def test_what_was_the_only_part_moves_the_answer_by_all_of_it():
    got = explain.moved(jnp.array([2.0, 2.0]), jnp.array([2.0, 1.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(got, [-2.0, 1.0])
