from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import attention, ring

INPUTS, OUTPUTS, DIM, HEADS, KEPT = 3, 2, 8, 4, 16


def random_params(seed):
    """Parameters with a head that is not zero."""
    rng = np.random.default_rng(seed)
    params = attention.init_params(rng, INPUTS, OUTPUTS, dim=DIM, heads=HEADS)
    return params._replace(
        head=jnp.asarray(rng.normal(size=(DIM, OUTPUTS)), jnp.float32),
        scale=jnp.asarray(rng.uniform(0.5, 2, (3, DIM)), jnp.float32),
    )


def by_hand(params, inputs, window, heads):
    """The encoder of the newest row over the plain window, in NumPy and float64."""
    p = attention.Params(*(np.asarray(a, np.float64) for a in params))

    def norm(x, scale):
        return x * scale / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    token = np.asarray(inputs, np.float64)[-window:] @ p.embed
    x, mixed = token[-1], np.zeros(DIM)
    normed = norm(token, p.scale[0])
    weights = np.zeros((heads, len(token)))
    for head in range(heads):
        query, key, value = (m[:, head] for m in (p.query, p.key, p.value))
        logit = (normed @ key) @ (normed[-1] @ query) / np.sqrt(DIM / HEADS)
        logit -= np.exp(p.slope[head]) * np.arange(len(token) - 1, -1, -1)
        weights[head] = np.exp(logit - logit.max())
        weights[head] /= weights[head].sum()
        mixed += (weights[head] @ (normed @ value)) @ p.out[head]
    x = x + mixed
    hidden = norm(x, p.scale[1]) @ p.up
    gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    x = x + gelu @ p.down
    return norm(x, p.scale[2]) @ p.head, weights


write = jax.jit(attention.write)
encode = jax.jit(attention.encode, static_argnames=("window", "heads"))


def filled(params, inputs, start=0):
    """A cache that has seen all of the inputs, and the number of the newest."""
    cache, count = attention.init_cache(params, KEPT), jnp.int32(start - 1)
    for x in inputs:
        count = ring.advance(count)
        cache = write(params, cache, count, x)
    return cache, count


@pytest.mark.parametrize("seen", [1, 3, 8, 50])
@pytest.mark.parametrize(("window", "heads"), [(8, 4), (5, 2), (KEPT, 4)])
def test_a_streaming_step_equals_attention_over_the_plain_window(seen, window, heads):
    params = random_params(0)
    inputs = np.random.default_rng(1).normal(size=(seen, INPUTS)).astype(np.float32)
    cache, count = filled(params, inputs)
    got, weights = encode(params, cache, count, window=window, heads=heads)
    wanted, attended = by_hand(params, inputs, window, heads)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    there = attended.shape[1]
    np.testing.assert_allclose(weights[:, window - there :], attended, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weights[:, : window - there], 0.0)


def test_a_streaming_step_goes_on_when_the_counter_wraps():
    params = random_params(0)
    inputs = np.random.default_rng(1).normal(size=(30, INPUTS)).astype(np.float32)
    cache, count = filled(params, inputs, start=2 * ring.WRAP - 25)
    assert int(count) < 2 * ring.WRAP - 25
    got, _ = encode(params, cache, count, window=8, heads=4)
    np.testing.assert_allclose(got, by_hand(params, inputs, 8, 4)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "heads"), [(8, 4), (5, 2)])
def test_the_whole_window_gives_what_each_streaming_step_gave(window, heads):
    params, many = random_params(2), 20
    inputs = np.random.default_rng(3).normal(size=(many, INPUTS)).astype(np.float32)
    cache, streamed = attention.init_cache(params, KEPT), []
    for n, x in enumerate(inputs):
        cache = write(params, cache, jnp.int32(n), x)
        streamed.append(encode(params, cache, jnp.int32(n), window=window, heads=heads)[0])
    # Rows before the start of the stream are there and count nothing.
    before = np.full((window - 1, INPUTS), 7.0, np.float32)
    rows = np.concatenate((before, inputs))
    there = (np.arange(len(rows)) >= window - 1).astype(np.float32)
    whole = jax.jit(partial(attention.encode_window, window=window, heads=heads))
    got = whole(params, rows, there)
    assert got.shape == (many, OUTPUTS)
    np.testing.assert_allclose(got, np.array(streamed), rtol=1e-4, atol=1e-5)


def test_after_new_parameters_the_cache_is_as_if_it_had_been_made_with_them():
    old, new = random_params(4), random_params(5)
    rng = np.random.default_rng(6)
    streams = [rng.normal(size=(many, INPUTS)).astype(np.float32) for many in (5, 40)]
    caches, counts = zip(*(filled(old, inputs) for inputs in streams), strict=True)
    bank = jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches)
    moved = jax.jit(attention.reproject)(new, bank)
    for stream, inputs in enumerate(streams):
        row = jax.tree.map(lambda a, s=stream: a[s : s + 1], moved)
        got, _ = encode(new, row, counts[stream], window=KEPT, heads=HEADS)
        fresh, count = filled(new, inputs)
        wanted, _ = encode(new, fresh, count, window=KEPT, heads=HEADS)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        stale, _ = encode(new, caches[stream], counts[stream], window=KEPT, heads=HEADS)
        assert np.abs(np.asarray(stale) - np.asarray(wanted)).max() > 1e-2
        held = min(len(inputs), KEPT)
        for a, b in ((row.keys, fresh.keys), (row.values, fresh.values)):
            got, wanted = (np.asarray(ring.last(r, count, held)) for r in (a, b))
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_an_encoder_that_has_learned_nothing_changes_nothing():
    params = attention.init_params(np.random.default_rng(7), INPUTS, OUTPUTS, dim=DIM, heads=HEADS)
    inputs = np.random.default_rng(8).normal(size=(20, INPUTS)).astype(np.float32)
    cache, count = filled(params, inputs)
    out, weights = encode(params, cache, count, window=8, heads=HEADS)
    np.testing.assert_array_equal(out, 0.0)
    np.testing.assert_allclose(np.asarray(weights).sum(axis=1), 1.0, rtol=1e-5)


def test_a_window_longer_than_the_cache_is_refused():
    params = random_params(0)
    cache, count = filled(params, np.zeros((1, INPUTS), np.float32))
    with pytest.raises(ValueError, match="holds 16 rows, 17"):
        encode(params, cache, count, window=17, heads=HEADS)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="dim 8 and 3 heads"):
        attention.init_params(np.random.default_rng(0), INPUTS, OUTPUTS, dim=8, heads=3)
