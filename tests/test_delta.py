from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import compression, delta, layers, ring

INPUTS, OUTPUTS, DIM, HEADS, CHUNK, LATE = 3, 2, 8, 4, 4, 5
# Layers, samples in a patch, and queries of a decoder.
KINDS = ((1, 1, 0), (2, 1, 0), (1, 3, 0), (1, 1, 2), (3, 2, 2))


def random_params(seed, depth=1, patch=1, queries=0):
    """Parameters as after much learning: nothing is zero or one."""
    rng = np.random.default_rng(seed)
    sizes = {"layers": depth, "patch": patch, "queries": queries}
    params = layers.init_params(rng, INPUTS, OUTPUTS, delta.gates, dim=DIM, heads=HEADS, **sizes)
    return jax.tree.map(lambda a: a + rng.normal(0, 0.2, a.shape).astype(np.float32), params)


def by_hand(params, inputs, patch, heads=HEADS, units=2 * DIM):
    """The encoder after the newest row, one sample after the other, in NumPy and float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, scale):
        return x * scale / np.sqrt((x * x).mean() + 1e-6)

    def unit(x):
        return x / np.sqrt((x * x).sum() + 1e-6)

    def rest(layer, token, states, heads, units):
        normed, x = norm(token, layer.scale[0]), token.copy()
        for head in range(heads):
            x += states[head] @ unit(normed @ layer.query[:, head]) @ layer.out[head]
        hidden = norm(x, layer.scale[1]) @ layer.up[:, :units]
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return x + gelu @ layer.down[:units]

    rows = np.concatenate((np.zeros((patch - 1, INPUTS)), inputs))
    states = np.zeros((len(p.layers), HEADS, DIM // HEADS, DIM // HEADS))
    for n in range(len(inputs)):
        token = rows[n : n + patch].ravel() @ p.embed
        for layer, held in zip(p.layers, states, strict=True):
            normed = norm(token, layer.scale[0])
            for head, state in enumerate(held):
                key, value = unit(normed @ layer.key[:, head]), normed @ layer.value[:, head]
                write, forget = (
                    normed @ layer.fading.weight[:, :, head] + layer.fading.bias[:, head]
                )
                state *= 1 / (1 + np.exp(forget))
                state += np.outer(value - state @ key, key) / (1 + np.exp(-write))
            if layer is not p.layers[-1]:
                token = rest(layer, token, held, HEADS, 2 * DIM)
    positions = p.ahead if len(p.ahead) else np.zeros((1, DIM))
    out = [rest(p.layers[-1], token + one, states[-1], heads, units) for one in positions]
    return np.concatenate([norm(x, p.scale) @ p.head for x in out])


write = jax.jit(delta.write)
encode = jax.jit(delta.encode, static_argnames=("heads", "units"))


def filled(params, inputs, patch, start=0):
    """A cache that has seen all of the inputs, and the newest token."""
    cache = delta.init_cache(params, delta.Form(8, patch, CHUNK), CHUNK + LATE)
    count, token = jnp.int32(start - 1), None
    for x in inputs:
        count = ring.advance(count)
        cache, token = write(params, cache, count, x)
    return cache, token


@pytest.mark.parametrize("seen", [1, 3, 50])
@pytest.mark.parametrize(("heads", "units"), [(4, 16), (2, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_streaming_step_is_the_rule_as_it_is_written(seen, heads, units, kind):
    params = random_params(0, *kind)
    inputs = np.random.default_rng(1).normal(size=(seen, INPUTS)).astype(np.float32)
    got = encode(params, *filled(params, inputs, kind[1]), heads=heads, units=units)
    wanted = by_hand(params, inputs, kind[1], heads, units)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [0, 2 * ring.WRAP - 25])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_chunk_gives_what_each_streaming_step_gave(kind, start):
    params, patch = random_params(2, *kind), kind[1]
    inputs = np.random.default_rng(3).normal(size=(40, INPUTS)).astype(np.float32)
    cache, token = filled(params, inputs[:0], patch)
    again = jax.jit(partial(delta.matured, moments=CHUNK))
    streamed, count, compared = {}, jnp.int32(start - 1), 0
    for x in inputs:
        count = ring.advance(count)
        cache, token = write(params, cache, count, x)
        streamed[int(count)] = encode(params, cache, token)
        got, numbers, known = again(params, cache, count - LATE)
        newest = int(count) - LATE
        assert newest - CHUNK < int(numbers[-1]) <= newest
        assert (int(numbers[-1]) + 1) % CHUNK == 0
        np.testing.assert_array_equal(known, np.asarray(numbers) >= 0)
        for answer, number in zip(got, numbers.tolist(), strict=True):
            if number in streamed:
                np.testing.assert_allclose(answer, streamed[number], rtol=1e-4, atol=1e-5)
                compared += 1
    assert compared > 80


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_gives_what_a_stream_gives_that_begins_with_it(kind):
    params, form = random_params(4, *kind), delta.Form(5, kind[1])
    inputs = np.random.default_rng(5).normal(size=(9, INPUTS)).astype(np.float32)
    # Rows before the start of the stream are there and count nothing.
    before = np.full((kind[1] - 1, INPUTS), 7.0, np.float32)
    rows = np.concatenate((before, inputs))
    seen = (np.arange(len(rows)) >= len(before)).astype(np.float32)
    assert len(rows) == delta.context(kind[0], form) + 5
    got = jax.jit(partial(delta.encode_window, form=form))(params, rows, seen)
    wanted = [by_hand(params, inputs[: n + 1], kind[1]) for n in range(4, 9)]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_has_learned_nothing_changes_nothing():
    rng = np.random.default_rng(7)
    params = layers.init_params(rng, INPUTS, OUTPUTS, delta.gates, dim=DIM, heads=HEADS)
    inputs = rng.normal(size=(20, INPUTS)).astype(np.float32)
    np.testing.assert_array_equal(encode(params, *filled(params, inputs, 1)), 0.0)


def test_what_is_remembered_stays_bounded_whatever_comes():
    params = random_params(8)
    rng = np.random.default_rng(9)
    for inputs in (np.full((3000, INPUTS), 10.0), 10.0 * rng.choice([-1, 1], (3000, INPUTS))):
        cache, _ = filled(params, inputs.astype(np.float32), 1)
        normed = [
            layers.norm(x.astype(np.float32) @ params.embed, params.layers[0].scale[0])
            for x in inputs[-300:]
        ]
        values = np.einsum("nd,dhe->nhe", normed, params.layers[0].value)
        # Nothing is held that is much larger than what was written.
        assert np.abs(cache.states[0]).max() < 3 * np.linalg.norm(values, axis=-1).max()


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_a_triangular_system_is_solved_with_its_gradients(rows):
    rng = np.random.default_rng(rows)
    for lower in (
        np.tril(rng.normal(size=(3, rows, rows)), -1),
        # What keys that are all alike make: powers of it are beyond float32.
        np.tril(np.ones((3, rows, rows)), -1),
    ):
        lower, right = 0.5 * lower, rng.normal(size=(3, rows, 5))
        wanted = np.linalg.solve(np.eye(rows) + lower, right)
        given = jnp.asarray(lower, jnp.float32), jnp.asarray(right, jnp.float32)
        np.testing.assert_allclose(delta.solve(*given), wanted, rtol=1e-3, atol=1e-3)
        pull = rng.normal(size=right.shape).astype(np.float32)
        slopes = jax.grad(lambda *args, p=pull: jnp.sum(p * delta.solve(*args)), (0, 1))
        by_lower, by_right = slopes(*given)
        back = np.linalg.solve(np.eye(rows) + lower.swapaxes(1, 2), pull)
        np.testing.assert_allclose(by_right, back, rtol=1e-3, atol=1e-3)
        outer = -back @ wanted.swapaxes(1, 2)
        np.testing.assert_allclose(by_lower, outer, rtol=1e-3, atol=1e-2)


def test_only_whole_chunks_are_gone_through_again():
    params = random_params(0)
    cache, _ = filled(params, np.zeros((1, INPUTS), np.float32), 1)
    with pytest.raises(ValueError, match=f"chunk has {CHUNK} moments, 3 were asked for"):
        delta.matured(params, cache, jnp.int32(0), 3)


def test_heads_stay_where_what_they_hold_is_and_units_are_ordered():
    params = random_params(1)
    known, heads, units = compression.weigh(compression.init(params), params, random_params(2))
    np.testing.assert_array_equal(heads, np.arange(HEADS))
    assert (np.diff(known.units) <= 0).all()
    inputs = np.random.default_rng(1).normal(size=(20, INPUTS)).astype(np.float32)
    filling = filled(params, inputs, 1)
    moved = compression.ordered(params, heads, units)
    assert (np.asarray(moved.layers[0].up) != np.asarray(params.layers[0].up)).any()
    np.testing.assert_allclose(
        encode(moved, *filling), encode(params, *filling), rtol=1e-5, atol=1e-6
    )
