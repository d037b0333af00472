from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import attention, layers, ring

INPUTS, OUTPUTS, DIM, HEADS, KEPT = 3, 2, 8, 4, 4
PLAIN = attention.Form(window=8)
# Layers, samples in a patch, and queries of a decoder.
KINDS = ((1, 1, 0), (2, 1, 0), (1, 3, 0), (1, 1, 2), (3, 2, 2))


def random_params(seed, depth=1, patch=1, queries=0):
    """Parameters with a head that is not zero."""
    rng = np.random.default_rng(seed)
    sizes = {"layers": depth, "patch": patch, "queries": queries}
    params = layers.init_params(
        rng, INPUTS, OUTPUTS, attention.slopes, dim=DIM, heads=HEADS, **sizes
    )
    scales = [jnp.asarray(rng.uniform(0.5, 2, (2, DIM)), jnp.float32) for _ in range(depth)]
    return params._replace(
        head=jnp.asarray(rng.normal(size=params.head.shape), jnp.float32),
        scale=jnp.asarray(rng.uniform(0.5, 2, DIM), jnp.float32),
        layers=tuple(
            layer._replace(scale=scale) for layer, scale in zip(params.layers, scales, strict=True)
        ),
    )


def by_hand(params, inputs, form, window=None, heads=HEADS, units=2 * DIM):
    """The encoder of the newest row over plain windows, in NumPy and float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, scale):
        return x * scale / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def through(layer, query, tokens, heads, units):
        mixed, normed = np.zeros(DIM), norm(tokens, layer.scale[0])
        weights = np.zeros((heads, len(tokens)))
        for head in range(heads):
            q, key, value = (m[:, head] for m in (layer.query, layer.key, layer.value))
            logit = (normed @ key) @ (norm(query, layer.scale[0]) @ q) / np.sqrt(DIM / HEADS)
            logit -= np.exp(layer.fading[head]) * np.arange(len(tokens) - 1, -1, -1)
            weights[head] = np.exp(logit - logit.max())
            weights[head] /= weights[head].sum()
            mixed += (weights[head] @ (normed @ value)) @ layer.out[head]
        x = query + mixed
        hidden = norm(x, layer.scale[1]) @ layer.up[:, :units]
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return x + gelu @ layer.down[:units], weights

    rows = np.concatenate((np.zeros((form.patch - 1, INPUTS)), inputs))
    tokens = [rows[n : n + form.patch].ravel() @ p.embed for n in range(len(inputs))]
    for layer in p.layers[:-1]:
        tokens = [
            through(layer, token, np.array(past(tokens[: n + 1], form)), HEADS, 2 * DIM)[0]
            for n, token in enumerate(tokens)
        ]
    positions = p.ahead if len(p.ahead) else np.zeros((1, DIM))
    window = np.array(past(tokens, form._replace(window=window or form.window)))
    answers = [through(p.layers[-1], tokens[-1] + q, window, heads, units) for q in positions]
    out = [norm(x, p.scale) @ p.head for x, _ in answers]
    return np.concatenate(out), np.array([weights for _, weights in answers])


def past(tokens, form):
    """The newest tokens, a patch apart, oldest first."""
    return tokens[:: -form.patch][: form.window][::-1]


write = jax.jit(attention.write)
encode = jax.jit(attention.encode, static_argnames=("window", "heads", "units"))


def filled(params, inputs, form=PLAIN, start=0):
    """A cache that has seen all of the inputs, the newest token and its number."""
    cache, count, token = attention.init_cache(params, form, KEPT), jnp.int32(start - 1), None
    for x in inputs:
        count = ring.advance(count)
        cache, token = write(params, cache, count, x)
    return cache, token, count


@pytest.mark.parametrize("seen", [1, 3, 8, 50])
@pytest.mark.parametrize(("window", "heads", "units"), [(8, 4, 16), (5, 2, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_streaming_step_equals_attention_over_the_plain_window(seen, window, heads, units, kind):
    params = random_params(0, *kind)
    form = attention.Form(8, kind[1])
    inputs = np.random.default_rng(1).normal(size=(seen, INPUTS)).astype(np.float32)
    got, weights = encode(
        params, *filled(params, inputs, form), window=window, heads=heads, units=units
    )
    wanted, attended = by_hand(params, inputs, form, window, heads, units)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    there = attended.shape[2]
    np.testing.assert_allclose(weights[..., window - there :], attended, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weights[..., : window - there], 0.0)


def test_a_streaming_step_goes_on_when_the_counter_wraps():
    params = random_params(0)
    inputs = np.random.default_rng(1).normal(size=(30, INPUTS)).astype(np.float32)
    filling = filled(params, inputs, start=2 * ring.WRAP - 25)
    assert int(filling[2]) < 2 * ring.WRAP - 25
    got, _ = encode(params, *filling, window=8)
    np.testing.assert_allclose(got, by_hand(params, inputs, PLAIN)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_window_gives_what_each_streaming_step_gave(kind):
    params, many, form = random_params(2, *kind), 20, attention.Form(4, kind[1])
    inputs = np.random.default_rng(3).normal(size=(many, INPUTS)).astype(np.float32)
    cache, streamed = attention.init_cache(params, form, KEPT), []
    for n, x in enumerate(inputs):
        cache, token = write(params, cache, jnp.int32(n), x)
        streamed.append(encode(params, cache, token, jnp.int32(n), window=4)[0])
    # Rows before the start of the stream are there and count nothing.
    before = np.full((attention.context(kind[0], form), INPUTS), 7.0, np.float32)
    rows = np.concatenate((before, inputs))
    there = (np.arange(len(rows)) >= len(before)).astype(np.float32)
    got = jax.jit(partial(attention.encode_window, form=form))(params, rows, there)
    assert got.shape == (many, OUTPUTS)
    np.testing.assert_allclose(got, np.array(streamed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_after_new_parameters_the_cache_is_as_if_it_had_been_made_with_them(kind):
    old, new = random_params(4, *kind), random_params(5, *kind)
    form = attention.Form(4, kind[1])
    rng = np.random.default_rng(6)
    streams = [rng.normal(size=(many, INPUTS)).astype(np.float32) for many in (5, 70)]
    caches, _, counts = zip(*(filled(old, inputs, form) for inputs in streams), strict=True)
    bank = jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches)
    moved = jax.jit(attention.reproject)(new, bank, jnp.array(counts))
    next_one = rng.normal(size=(2, INPUTS)).astype(np.float32)
    for stream, inputs in enumerate(streams):
        row = jax.tree.map(lambda a, s=stream: a[s : s + 1], moved)
        wanted, _ = by_hand(new, np.concatenate((inputs, next_one)), form)
        errors = []
        for cache in (row, caches[stream]):
            count = counts[stream]
            for x in next_one:
                count = ring.advance(count)
                cache, token = write(new, cache, count, x)
            got, _ = encode(new, cache, token, count, window=4)
            errors.append(np.abs(np.asarray(got) - wanted).max())
        assert errors[0] < 1e-4
        assert errors[1] > 1e-2  # of a model that never was


def test_an_encoder_that_has_learned_nothing_changes_nothing():
    rng = np.random.default_rng(7)
    params = layers.init_params(rng, INPUTS, OUTPUTS, attention.slopes, dim=DIM, heads=HEADS)
    inputs = np.random.default_rng(8).normal(size=(20, INPUTS)).astype(np.float32)
    out, weights = encode(params, *filled(params, inputs), window=8)
    np.testing.assert_array_equal(out, 0.0)
    np.testing.assert_allclose(np.asarray(weights).sum(axis=2), 1.0, rtol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_window_longer_than_the_cache_is_refused(patch):
    params = random_params(0, patch=patch)
    filling = filled(params, np.zeros((1, INPUTS), np.float32), attention.Form(8, patch))
    held = filling[0].keys[0].length
    with pytest.raises(ValueError, match=f"holds {held} rows, {held + patch}"):
        encode(params, *filling, window=held // patch + 1)


def test_sizes_that_do_not_divide_each_other_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="dim 8 and 3 heads"):
        layers.init_params(rng, INPUTS, OUTPUTS, attention.slopes, dim=8, heads=3)
    with pytest.raises(ValueError, match="got 2 and 3"):
        layers.init_params(rng, INPUTS, OUTPUTS, attention.slopes, dim=8, heads=4, queries=3)
