from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import analogues, attention, corrections, experts, explain, model, packed, recall
from adaptive.settings import EXPERTS, Level, Shape

SHAPE = Shape(channels=2, horizon=2, memory=512, window=6, dim=8, heads=2, origins=8)
LEVEL = Level("recall", 512)
PARAMS = model.init_params(np.random.default_rng(0), SHAPE)


@pytest.fixture(scope="module")
def states():
    """A stream with a season, and half-days of another level on some days, at several moments."""
    rng, n = np.random.default_rng(1), np.arange(1620)
    bumps = np.where((n % 24 < 12) & (rng.random(1620) < 0.4)[n // 24 * 24], 3.0, 0.0)
    day = np.sin(2 * np.pi * n / 24)
    values = np.stack((day + bumps, day**3), axis=1) + rng.normal(0, 0.1, (1620, 2))

    @jax.jit
    def lived(state, values):
        def one(state, x):
            return model.step(PARAMS, state, x, jnp.ones_like(x), LEVEL)[0], None

        return jax.lax.scan(one, state, values)[0]

    values = jnp.asarray(values, jnp.float32)
    state = lived(jax.jit(lambda: model.init(PARAMS, SHAPE))(), values[:1500])
    found = [state]
    for first in range(1500, 1620, 15):
        found.append(lived(found[-1], values[first : first + 15]))
    return found


@pytest.fixture(scope="module")
def state(states):
    return states[0]


@pytest.fixture(scope="module")
def found(state):
    return jax.jit(explain.effects, static_argnums=2)(PARAMS, state, LEVEL)


@jax.jit
def correction(state, masked):
    """What is served beside the encoder, with some moments masked out before the softmax."""
    distance = recall.distances(state.far, state.count, LEVEL.memory_samples)
    near = recall.nearest(state.far, distance)
    lags = jnp.where(jnp.isfinite(near.distance), near.lag, 0).ravel()
    memory = state.memory
    among = analogues.candidates(memory, state.count, state.season.lag, lags, LEVEL.memory_samples)
    among = among._replace(may=among.may.at[masked].set(0.0))
    key = packed.read(memory.keys, state.count)
    out = analogues.attend(PARAMS.recall, memory, state.count, key, among)[1]
    recalled = corrections.bounded(out[0], state.loss)
    none = jnp.zeros_like(recalled)
    ahead = jnp.zeros((len(EXPERTS), *none.shape))
    return corrections.serve(state.corrections, state.loss, ahead, recalled, none)[1]


NONE = jnp.zeros(0, jnp.int32)


def test_the_effect_of_a_moment_is_what_masking_it_out_changes(state, found):
    assert int(state.season.lag) == 24
    whole, weight = correction(state, NONE), np.asarray(found.weight)
    assert weight.sum() == pytest.approx(1.0, rel=1e-5)
    for k in np.argsort(-weight)[[0, 1, 2, 5, 9]]:
        wanted = np.abs(whole - correction(state, jnp.array([k]))).mean()
        assert found.effect[k] == pytest.approx(wanted, rel=1e-2, abs=1e-6)


def test_the_explained_weights_are_those_that_the_answer_was_made_with():
    rng, n = np.random.default_rng(2), np.arange(1200)
    values = np.stack((np.sin(2 * np.pi * n / 24), np.cos(2 * np.pi * n / 24)), axis=1)
    values = jnp.asarray(values + rng.normal(0, 0.1, values.shape), jnp.float32)

    @jax.jit
    def lived(state, values):
        return jax.lax.scan(
            lambda state, x: model.step(PARAMS, state, x, jnp.ones_like(x), LEVEL), state, values
        )

    state, out = lived(jax.jit(lambda: model.init(PARAMS, SHAPE))(), values)
    found = jax.jit(explain.effects, static_argnums=2)(PARAMS, state, LEVEL)
    order = np.argsort(-np.asarray(found.weight))[: analogues.SHOWN]
    np.testing.assert_allclose(out.weight[-1], np.asarray(found.weight)[order], rtol=0.02)
    assert set(out.lag[-1].tolist()) <= set(np.asarray(found.lag).tolist())
    np.testing.assert_allclose(out.expert[-1], found.expert_weight, rtol=1e-4)


def test_without_the_most_attended_the_answer_moves_more_than_without_the_least(states):
    effects = jax.jit(explain.effects, static_argnums=2)
    for many in (1, 5):
        moved = []
        for state in states:
            whole, weight = (
                correction(state, NONE),
                np.asarray(effects(PARAMS, state, LEVEL).weight),
            )
            there = np.flatnonzero(weight > 0)
            order = there[np.argsort(-weight[there])]
            moved.append(
                [
                    np.abs(whole - correction(state, jnp.asarray(some))).mean()
                    for some in (order[:many], order[-many:])
                ]
            )
        most, least = np.mean(moved, axis=0)
        assert most > 1.3 * least, many


def test_the_effect_of_an_expert_is_what_the_others_would_say_without_it(state, found):
    trust = np.asarray(experts.weights(state.loss[: len(EXPERTS)]), np.float64)
    ahead = np.asarray(state.made[:, : len(EXPERTS)], np.float64).transpose(1, 0, 2)
    scale = np.sqrt(np.asarray(state.glitch.variance, np.float64))
    limit = np.sqrt(np.asarray(state.loss[corrections.TRUNK], np.float64))
    share = np.asarray(corrections.shares(state.corrections), np.float64)
    assert np.abs(share[:, : len(EXPERTS)]).max() > 0.01

    def served(trunk, speak):
        """Less what recall brings, which is the same whoever speaks."""
        parts = np.clip((ahead - trunk) / scale, -limit, limit) * speak[:, None, None]
        return trunk / scale + np.einsum("he,ehc->hc", share[:, : len(EXPERTS)], parts)

    whole = served((trust * ahead).sum(axis=0), np.ones(len(EXPERTS)))
    for k in range(len(EXPERTS)):
        speak = np.arange(len(EXPERTS)) != k
        rest = (trust[speak] * ahead[speak]).sum(axis=0) / trust[speak].sum(axis=0)
        wanted = np.abs(served(rest, speak) - whole).mean()
        assert found.expert_effect[k] == pytest.approx(wanted, rel=1e-2, abs=1e-5)
    np.testing.assert_allclose(found.expert_weight, trust.mean(axis=(1, 2)), rtol=1e-4)


def test_what_was_the_only_part_moves_the_answer_by_all_of_it():
    got = explain.moved(jnp.array([2.0, 2.0]), jnp.array([2.0, 1.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(got, [-2.0, 1.0])


def test_an_expert_that_speaks_alone_moves_the_answer_to_what_the_others_say(state):
    best = EXPERTS.index("rls-slow")
    loss = state.loss.at[: len(EXPERTS)].set(1.0).at[best].set(0.1)
    ahead = jnp.zeros_like(state.made[:, : len(EXPERTS)]).at[:, best].set(5.0)
    fresh = corrections.init(SHAPE.horizon)  # nothing but the trunk is served
    made = state.made.at[:, : len(EXPERTS)].set(ahead)
    alone = state._replace(loss=loss, made=made, corrections=fresh)
    got = jax.jit(explain.effects, static_argnums=2)(PARAMS, alone, LEVEL)
    assert got.expert_weight[best] > 1 - 1e-6
    wanted = float(np.mean(5.0 / np.sqrt(np.asarray(state.glitch.variance))))
    assert got.expert_effect[best] == pytest.approx(wanted, rel=1e-3)
    others = np.delete(np.asarray(got.expert_effect), best)
    assert others.max() < 1e-3 * wanted


@pytest.mark.parametrize("change", [{}, {"layers": 2}, {"patch": 2}, {"decoder": True}])
def test_what_the_encoder_attended_to_is_what_its_answer_was_made_with(change):
    shape = SHAPE._replace(encoder="attention", **change)
    params = model.init_params(np.random.default_rng(1), shape)
    level = Level("full", 512, 5, heads=1)
    rng = np.random.default_rng(2)

    @jax.jit
    def step(state, x):
        return model.step(params, state, x, jnp.ones_like(x), level)[0]

    state, weights = jax.jit(lambda: model.init(params, shape))(), []
    keep = attention.encode

    def watched(*args, **options):
        out, weight = keep(*args, **options)
        jax.debug.callback(lambda seen: weights.append(np.asarray(seen)), weight)
        return out, weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "encode", watched)
        for _ in range(40):
            state = step(state, jnp.asarray(rng.normal(size=2), jnp.float32))
    jax.effects_barrier()
    found = jax.jit(explain.effects, static_argnums=2)(params, state, level)
    assert found.looked.shape == (5,)
    assert float(found.looked.sum()) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(found.looked[::-1], weights[-1].mean(axis=(0, 1)), rtol=1e-3)
    # Delta layers have no weights on tokens, and so has a level without an encoder.
    assert jax.eval_shape(partial(explain.looked, level=LEVEL), params.encoder, state).shape == (0,)
    other = model.init(PARAMS, SHAPE)
    assert explain.looked(PARAMS.encoder, other, level).shape == (0,)
