"""Streaming multi-head attention: causal layers over a ring-buffer KV cache.

A token attends to the `window` newest tokens, a patch apart; keys and values are kept, so a sample
costs O(window), not O(window^2), every sample is answered on arrival, and the answer equals what
the whole window would give. Positions are relative (a penalty on age, one slope a head), so that
cached keys never expire by moving. Each weight on what was attended to is there to be looked at.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import ring
from adaptive.layers import Layer, Params, ask, finish, norm, patches, read_out


class Form(NamedTuple):
    """What is fixed beside the sizes of the parameters."""

    window: int  # tokens that a query attends to at most
    patch: int = 1  # samples in a token, and between two that are attended to


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "keys", "values"],
    meta_fields=["form"],
)
@dataclass(frozen=True)
class Cache:
    """Rings of what was seen. The inputs stay, so that keys and values can be made anew."""

    inputs: ring.Ring  # (inputs,)
    keys: tuple[ring.Ring, ...]  # of each layer: (heads, head_dim)
    values: tuple[ring.Ring, ...]
    form: Form


def slopes(_dim: int, heads: int) -> Float[np.ndarray, " heads"]:
    """Logarithms of the penalties on age [1 / token], at first, as in ALiBi."""
    return np.log(2.0 ** -(1.0 + 6.0 * np.arange(heads) / heads))


def init_cache(params: Params, form: Form, kept: int) -> Cache:
    """An empty cache, from whose inputs the newest `kept` answers can be given anew."""
    layers, (_, heads, head_dim) = len(params.layers), params.layers[0].query.shape
    inputs = params.embed.shape[0] // form.patch
    empty = (ring.init(form.window * form.patch, heads, head_dim),) * layers
    return Cache(ring.init(context(layers, form) + kept, inputs), empty, empty, form)


def context(layers: int, form: Form) -> int:
    """How many samples before it an answer depends on."""
    return (layers * (form.window - 1) + 1) * form.patch - 1


def project(
    layer: Layer, token: Float[Array, "*rows dim"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The keys and values of tokens."""
    normed = norm(token, layer.scale[0])
    keys = jnp.einsum("...d,dhe->...he", normed, layer.key)
    return keys, jnp.einsum("...d,dhe->...he", normed, layer.value)


def attend(
    layer: Layer,
    tokens: Float[Array, "*rows queries dim"],
    keys: Float[Array, "*rows window all_heads head_dim"],
    values: Float[Array, "*rows window all_heads head_dim"],
    seen: Float[Array, "*rows window"],
    heads: int | None = None,
    units: int | None = None,
) -> tuple[Float[Array, "*rows queries dim"], Float[Array, "*rows queries heads window"]]:
    """Take tokens through a layer, its first heads and hidden units; windows are oldest first."""
    window, head_dim = keys.shape[-3], keys.shape[-1]
    query = jnp.einsum("...qd,dhe->...qhe", norm(tokens, layer.scale[0]), layer.query[:, :heads])
    age = jnp.arange(window - 1, -1, -1, dtype=jnp.float32)
    logit = jnp.einsum("...qhe,...whe->...qhw", query, keys[..., :heads, :]) / head_dim**0.5
    logit = logit - jnp.exp(layer.fading[:heads, None]) * age
    # Not infinity: where nothing is there the softmax, and each gradient, would be NaN.
    weight = jax.nn.softmax(jnp.where(seen[..., None, None, :] > 0, logit, -1e30), axis=-1)
    mixed = jnp.einsum("...qhw,...whe->...qhe", weight, values[..., :heads, :])
    return finish(layer, tokens, mixed, units), weight


def newest(rows: ring.Ring, count: Int[Array, ""], window: int, patch: int) -> Float[Array, "..."]:
    """Read `window` rows, `patch` apart, up to sample number `count`, oldest first."""
    if patch == 1:
        return ring.last(rows, count, window)
    if window * patch > rows.length:
        raise ValueError(f"the ring holds {rows.length} rows, {window * patch} were asked for")
    return ring.read(rows, count - patch * jnp.arange(window - 1, -1, -1))


def there(count: Int[Array, ""], window: int, patch: int) -> Float[Array, " window"]:
    """1 where a token is of the stream, 0 before its start."""
    return (patch * jnp.arange(window - 1, -1, -1) <= count).astype(jnp.float32)


def write(
    params: Params, cache: Cache, count: Int[Array, ""], inputs: Float[Array, " inputs"]
) -> tuple[Cache, Float[Array, " dim"]]:
    """Take in the newest sample, number `count`; return also the token that the last layer sees."""
    form = cache.form
    rows = ring.push(cache.inputs, count, inputs)
    patch = inputs if form.patch == 1 else ring.last(rows, count, form.patch).ravel()
    token, keys, values = patch @ params.embed, [], []
    for k, layer in enumerate(params.layers):
        key, value = project(layer, token)
        keys.append(ring.push(cache.keys[k], count, key))
        values.append(ring.push(cache.values[k], count, value))
        if k < len(params.layers) - 1:
            seen = there(count, *form)
            past_keys, past_values = (newest(one[k], count, *form) for one in (keys, values))
            token = attend(layer, token[None], past_keys, past_values, seen)[0][0]
    return Cache(rows, tuple(keys), tuple(values), form), token


def encode(
    params: Params,
    cache: Cache,
    token: Float[Array, " dim"],
    count: Int[Array, ""],
    *,
    window: int,
    heads: int | None = None,
    units: int | None = None,
) -> tuple[Float[Array, " outputs"], Float[Array, "queries heads window"]]:
    """Read the last layer out by attending to the newest tokens.

    With `d = head_dim`, `s` the slope of a head and `q` a query,

        softmax(q K' / sqrt(d) - s age) V,   q = W_query norm(token + position),

    over the heads, then output projection, residual, norm, feed-forward, residual, norm, head.

    Args:
        params: The projections.
        cache: At least one sample is written; the newest has number `count`.
        token: Of the newest, from `write`.
        count: Number of the newest sample.
        window: How many of the newest tokens to attend to, static.
        heads: How many of the first heads to use, static; all when None.
        units: How many of the first hidden units to use, static; all when None.

    Returns:
        The outputs, and the attention weights, oldest token first.

    Raises:
        ValueError: `window` is longer than the cache; raised while tracing.

    References:
        Vaswani et al., Attention Is All You Need, 2017, with one query as in Hedegaard et al.,
        Continual Transformers, 2023; Press et al., ALiBi, 2022, for the penalty on age; Nie et
        al., PatchTST, 2023, for patches. Unlike theirs the slopes are learned, patches overlap, and
        keys are made anew after each gradient step.
    """
    patch = cache.form.patch
    keys, values = (newest(one[-1], count, window, patch) for one in (cache.keys, cache.values))
    seen = there(count, window, patch)
    x, weight = attend(params.layers[-1], ask(params, token), keys, values, seen, heads, units)
    return read_out(params, x), weight


def encode_window(
    params: Params, inputs: Float[Array, "rows inputs"], seen: Float[Array, " rows"], form: Form
) -> Float[Array, "queries outputs"]:
    """The same for every row that has its whole context before it; differentiable in `params`.

    Args:
        params: The projections.
        inputs: `context(layers, form) + queries` rows, oldest first.
        seen: 1 where a row is of the stream, 0 before its start.
        form: Of the encoder.

    Returns:
        What `encode` returns after each of the last `queries` rows, with the whole window.
    """
    token, seen = asked(params, inputs, seen, form)
    last = params.layers[-1]
    keys, values, there = windows(last, token, seen, form)
    x, _ = attend(last, ask(params, token[reach(form) :]), keys, values, there)
    return read_out(params, x)


def reach(form: Form) -> int:
    """How many tokens before it one attends to, those between a patch apart counted."""
    return (form.window - 1) * form.patch


def windows(
    layer: Layer, token: Float[Array, "tokens dim"], seen: Float[Array, " tokens"], form: Form
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Keys, values and what was seen, in the window of each token that has a whole one."""
    keys, values = project(layer, token)
    rows = jnp.arange(len(token) - reach(form))[:, None] + form.patch * jnp.arange(form.window)
    return keys[rows], values[rows], seen[rows]


def asked(
    params: Params, inputs: Float[Array, "rows inputs"], seen: Float[Array, " rows"], form: Form
) -> tuple[Float[Array, "tokens dim"], Float[Array, " tokens"]]:
    """The tokens that the last layer sees, and whether they are of the stream."""
    token = patches(inputs * seen[:, None], form.patch) @ params.embed
    seen = seen[form.patch - 1 :]
    for layer in params.layers[:-1]:
        x, _ = attend(layer, token[reach(form) :, None], *windows(layer, token, seen, form))
        token, seen = x[:, 0], seen[reach(form) :]
    return token, seen


def looked(
    params: Params, cache: Cache, count: Int[Array, ""], *, window: int, heads: int | None = None
) -> Float[Array, " window"]:
    """How the newest answer attended to the newest tokens: mean over heads and queries.

    Args:
        params: The projections.
        cache: As it was when the answer was made.
        count: Number of the newest sample.
        window: Of the answer, static.
        heads: Of the answer, static.

    Returns:
        The weights, oldest token first; they sum to 1.
    """
    rows = context(len(params.layers), cache.form) + 1
    inputs = ring.last(cache.inputs, count, rows)
    seen = (jnp.arange(rows - 1, -1, -1) <= count).astype(jnp.float32)
    token = asked(params, inputs, seen, cache.form)[0][-1]
    weight = encode(params, cache, token, count, window=window, heads=heads)[1]
    return jnp.mean(weight, axis=(0, 1))


def matured(
    params: Params, cache: Cache, newest: Int[Array, ""], moments: int
) -> tuple[Float[Array, "moments outputs"], Int[Array, " moments"], Float[Array, " moments"]]:
    """Give the answers to samples that were seen anew; differentiable in `params`.

    Args:
        params: The projections.
        cache: Made to keep as many answers as there are moments up to the newest sample.
        newest: Number of the last of these samples.
        moments: How many.

    Returns:
        The answers, the numbers of their samples, and 1 where such a sample was, else 0.
    """
    rows = context(len(params.layers), cache.form) + moments
    inputs = ring.last(cache.inputs, newest, rows)
    seen = (jnp.arange(rows - 1, -1, -1) <= newest).astype(jnp.float32)
    got = encode_window(params, inputs, seen, cache.form)
    return got, newest - jnp.arange(moments - 1, -1, -1), seen[-moments:]


def reproject(params: Params, cache: Cache, count: Int[Array, " streams"]) -> Cache:
    """Make the cached keys and values of all streams anew after `params` have moved.

    Without this the next outputs would be of a model that never was: new queries, old keys.

    Args:
        params: The new ones.
        cache: Of all streams.
        count: Number of the newest sample of each.
    """
    form, length = cache.form, cache.inputs.length
    inputs = cache.inputs.rows[:, 0]
    before = [jnp.roll(inputs, k, axis=1) for k in range(form.patch - 1, -1, -1)]
    token = jnp.concatenate(before, axis=2) @ params.embed
    # Of each stream the samples that the places of a shorter ring hold.
    held, count_of = cache.keys[0].length, count[:, None]
    place = (count_of - ((count_of - jnp.arange(held)) & (held - 1))) & (length - 1)
    keys, values = [], []
    for k, layer in enumerate(params.layers):
        newest = jnp.take_along_axis(token, place[..., None], axis=1)
        for rings, new in zip((keys, values), project(layer, newest), strict=True):
            rings.append(ring.Ring(jnp.stack((new, new), axis=1)))
        if k < len(params.layers) - 1:
            token = lax.map(partial(again, layer, form, length), (token, count))
    return replace(cache, keys=tuple(keys), values=tuple(values))


def again(
    layer: Layer, form: Form, length: int, stream: tuple[Float[Array, "rows dim"], Int[Array, ""]]
) -> Float[Array, "rows dim"]:
    """Take all that a ring of so many rows holds of a stream, tokens and count, through a layer."""
    token, count = stream
    places = jnp.arange(length)
    back = (count - places) & (length - 1)  # [samples] from the newest to that of each place
    age = form.patch * jnp.arange(form.window - 1, -1, -1)
    seen = back[:, None] + age <= jnp.minimum(count, length - 1)
    rows = (places[:, None] - age) & (length - 1)
    keys, values = project(layer, token)
    x, _ = attend(layer, token[:, None], keys[rows], values[rows], seen.astype(jnp.float32))
    return x[:, 0]
