"""Streaming multi-head attention: one causal layer over a ring-buffer KV cache.

A token is one sample of all channels. The newest token attends to the `window` newest ones; its
keys and values are kept, so a sample costs O(window), not O(window^2), and equals what the whole
window would give. Positions are relative (a penalty on age, one slope a head), so that cached keys
never expire by moving. The output starts at zero: an untrained encoder changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adaptive import ring


class Params(NamedTuple):
    """The projections; `heads * head_dim = dim`."""

    embed: Float[Array, "inputs dim"]
    query: Float[Array, "dim heads head_dim"]
    key: Float[Array, "dim heads head_dim"]
    value: Float[Array, "dim heads head_dim"]
    out: Float[Array, "heads head_dim dim"]
    slope: Float[Array, " heads"]  # log of the penalty on age [1 / sample]
    up: Float[Array, "dim hidden"]
    down: Float[Array, "hidden dim"]
    scale: Float[Array, "norms dim"]  # of the three root-mean-square norms
    head: Float[Array, "dim outputs"]  # zero at the start


class Cache(NamedTuple):
    """Rings of what was seen. The inputs stay, so that keys and values can be made anew."""

    inputs: ring.Ring  # (inputs,)
    keys: ring.Ring  # (heads, head_dim)
    values: ring.Ring  # (heads, head_dim)


def init_params(
    rng: np.random.Generator, inputs: int, outputs: int, *, dim: int, heads: int
) -> Params:
    """Random projections, scaled by fan-in; a head of zeros; slopes as in ALiBi.

    NumPy draws them: `jax.random` would cost 4 s of compiling at each cold start.
    """
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim {dim} and {heads} heads")

    def dense(fan_in: int, *shape: int) -> Array:
        return jnp.asarray(rng.normal(0.0, fan_in**-0.5, shape), jnp.float32)

    each = (dim, heads, dim // heads)
    slope = 2.0 ** -(1.0 + 6.0 * np.arange(heads) / heads)
    return Params(
        embed=dense(inputs, inputs, dim),
        query=dense(dim, *each),
        key=dense(dim, *each),
        value=dense(dim, *each),
        out=dense(dim, *each[1:], dim),
        slope=jnp.asarray(np.log(slope), jnp.float32),
        up=dense(dim, dim, 2 * dim),
        down=dense(2 * dim, 2 * dim, dim),
        scale=jnp.ones((3, dim), jnp.float32),
        head=jnp.zeros((dim, outputs), jnp.float32),
    )


def init_cache(params: Params, kept: int) -> Cache:
    """An empty cache of the last `kept` samples."""
    heads, head_dim = params.query.shape[1:]
    empty = ring.init(kept, heads, head_dim)
    return Cache(ring.init(kept, params.embed.shape[0]), empty, empty)


def norm(x: Float[Array, "*rows dim"], scale: Float[Array, " dim"]) -> Float[Array, "*rows dim"]:
    """Root-mean-square normalisation (Zhang & Sennrich, 2019)."""
    return x * scale / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def project(
    params: Params, inputs: Float[Array, "*rows inputs"]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Embed tokens; return the embedding, the keys and the values."""
    token = inputs @ params.embed
    normed = norm(token, params.scale[0])
    keys = jnp.einsum("...d,dhe->...he", normed, params.key)
    values = jnp.einsum("...d,dhe->...he", normed, params.value)
    return token, keys, values


def write(
    params: Params, cache: Cache, count: Int[Array, ""], inputs: Float[Array, " inputs"]
) -> Cache:
    """Take in the newest sample, number `count`."""
    _, key, value = project(params, inputs)
    return Cache(
        ring.push(cache.inputs, count, inputs),
        ring.push(cache.keys, count, key),
        ring.push(cache.values, count, value),
    )


def reproject(params: Params, cache: Cache) -> Cache:
    """Make the cached keys and values of all streams anew after `params` have moved.

    Without this the next outputs would be of a model that never was: new queries, old keys.
    """
    _, keys, values = project(params, cache.inputs.rows)
    return cache._replace(keys=ring.Ring(keys), values=ring.Ring(values))


def block(
    params: Params,
    token: Float[Array, "*rows dim"],
    keys: Float[Array, "*rows window all_heads head_dim"],
    values: Float[Array, "*rows window all_heads head_dim"],
    seen: Float[Array, "*rows window"],
    heads: int,
) -> tuple[Float[Array, "*rows outputs"], Float[Array, "*rows heads window"]]:
    """Attend and read out, for queries that each have a window of their own, oldest first."""
    window, head_dim = keys.shape[-3], keys.shape[-1]
    query = jnp.einsum("...d,dhe->...he", norm(token, params.scale[0]), params.query[:, :heads])
    age = jnp.arange(window - 1, -1, -1, dtype=jnp.float32)
    logit = jnp.einsum("...he,...whe->...hw", query, keys[..., :heads, :]) / head_dim**0.5
    logit = logit - jnp.exp(params.slope[:heads, None]) * age
    # Not infinity: where nothing is there the softmax, and each gradient, would be NaN.
    weight = jax.nn.softmax(jnp.where(seen[..., None, :] > 0, logit, -1e30), axis=-1)
    mixed = jnp.einsum("...hw,...whe->...he", weight, values[..., :heads, :])
    x = token + jnp.einsum("...he,hed->...d", mixed, params.out[:heads])
    x = x + jax.nn.gelu(norm(x, params.scale[1]) @ params.up) @ params.down
    return norm(x, params.scale[2]) @ params.head, weight


def encode(
    params: Params, cache: Cache, count: Int[Array, ""], *, window: int, heads: int
) -> tuple[Float[Array, " outputs"], Float[Array, "heads window"]]:
    """Read out the newest token by attending to the newest ones.

    With `d = head_dim` and `s` the slope of a head,

        softmax(q K' / sqrt(d) - s age) V,   q = W_query norm(token),

    over the heads, then output projection, residual, norm, feed-forward, residual, norm, head.

    Args:
        params: The projections.
        cache: At least one sample is written; the newest has number `count`.
        count: Number of the newest sample.
        window: How many of the newest samples to attend to [samples], static.
        heads: How many of the first heads to use, static.

    Returns:
        The outputs, and the attention weights, oldest sample first.

    Raises:
        ValueError: `window` is longer than the cache; raised while tracing.

    References:
        Vaswani et al., Attention Is All You Need, 2017, with one query as in Hedegaard et al.,
        Continual Transformers, 2023; Press et al., ALiBi, 2022, for the penalty on age. Unlike
        theirs the slopes are learned, and keys are made anew after each gradient step.
    """
    token = ring.last(cache.inputs, count, 1)[0] @ params.embed
    seen = (jnp.arange(window - 1, -1, -1) <= count).astype(jnp.float32)
    keys, values = ring.last(cache.keys, count, window), ring.last(cache.values, count, window)
    return block(params, token, keys, values, seen, heads)


def encode_window(
    params: Params,
    inputs: Float[Array, "rows inputs"],
    seen: Float[Array, " rows"],
    *,
    window: int,
    heads: int,
) -> Float[Array, "queries outputs"]:
    """The same for every row that has a whole window before it; differentiable in `params`.

    Args:
        params: The projections.
        inputs: `window - 1 + queries` rows, oldest first.
        seen: 1 where a row is of the stream, 0 before its start.
        window: How many samples each query attends to, itself included.
        heads: How many of the first heads to use.

    Returns:
        What `encode` returns after each of the last `queries` rows.
    """
    queries = inputs.shape[0] - window + 1
    token, keys, values = project(params, inputs)
    rows = jnp.arange(queries)[:, None] + jnp.arange(window)
    return block(params, token[window - 1 :], keys[rows], values[rows], seen[rows], heads)[0]
