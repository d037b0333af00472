"""Streaming multi-head attention: causal layers over a ring-buffer KV cache.

A token is the newest sample of all channels, or a patch of the newest ones. It attends to the
`window` newest tokens, a patch apart; keys and values are kept, so a sample costs O(window), not
O(window^2), every sample is answered on arrival, and the answer equals what the whole window would
give. Positions are relative (a penalty on age, one slope a head), so that cached keys never expire
by moving. The last layer is read with one query, or, as a decoder, with one for each step ahead.
The output starts at zero: an untrained encoder changes nothing.
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


class Layer(NamedTuple):
    """One layer; `heads * head_dim = dim`."""

    query: Float[Array, "dim heads head_dim"]
    key: Float[Array, "dim heads head_dim"]
    value: Float[Array, "dim heads head_dim"]
    out: Float[Array, "heads head_dim dim"]
    slope: Float[Array, " heads"]  # log of the penalty on age [1 / token]
    up: Float[Array, "dim hidden"]
    down: Float[Array, "hidden dim"]
    scale: Float[Array, "norms dim"]  # of its two root-mean-square norms


class Params(NamedTuple):
    """All projections."""

    embed: Float[Array, "patch_inputs dim"]
    layers: tuple[Layer, ...]
    ahead: Float[Array, "queries dim"]  # positions of a decoder's queries; else there are none
    scale: Float[Array, " dim"]  # of the last norm
    head: Float[Array, "dim outputs"]  # of each query; zero at the start


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


def init_params(
    rng: np.random.Generator,
    inputs: int,
    outputs: int,
    *,
    dim: int,
    heads: int,
    layers: int = 1,
    patch: int = 1,
    queries: int = 0,
) -> Params:
    """Random projections, scaled by fan-in; a head of zeros; slopes as in ALiBi.

    NumPy makes them: each operation of JAX's is compiled first, which no start has time for.

    Args:
        rng: Draws them.
        inputs: Numbers of a sample.
        outputs: Numbers of the answer, of all queries.
        dim: Width.
        heads: Of each layer.
        layers: At least 1.
        patch: Samples in a token.
        queries: Of the decoder; 0 for a single one without a position.

    Raises:
        ValueError: `heads` does not divide `dim`, or `queries` not `outputs`.
    """
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim {dim} and {heads} heads")
    if outputs % max(queries, 1):
        raise ValueError(f"outputs must be a multiple of queries, got {outputs} and {queries}")

    def array(numbers: np.ndarray) -> Array:
        return jax.device_put(numbers.astype(np.float32))

    def dense(fan_in: int, *shape: int) -> Array:
        return array(rng.normal(0.0, fan_in**-0.5, shape))

    def layer() -> Layer:
        each = (dim, heads, dim // heads)
        slope = 2.0 ** -(1.0 + 6.0 * np.arange(heads) / heads)
        return Layer(
            query=dense(dim, *each),
            key=dense(dim, *each),
            value=dense(dim, *each),
            out=dense(dim, *each[1:], dim),
            slope=array(np.log(slope)),
            up=dense(dim, dim, 2 * dim),
            down=dense(2 * dim, 2 * dim, dim),
            scale=array(np.ones((2, dim))),
        )

    return Params(
        embed=dense(patch * inputs, patch * inputs, dim),
        layers=tuple(layer() for _ in range(layers)),
        ahead=array(sinusoids(queries, dim)),
        scale=array(np.ones(dim)),
        head=array(np.zeros((dim, outputs // max(queries, 1)))),
    )


def sinusoids(queries: int, dim: int) -> np.ndarray:
    """Positions [queries, dim] of the steps ahead, as in Vaswani et al., 2017."""
    turns = np.arange(1, queries + 1)[:, None] * 1e4 ** -(2.0 * (np.arange(dim) // 2) / dim)
    return np.where(np.arange(dim) % 2, np.cos(turns), np.sin(turns))


def init_cache(params: Params, form: Form, kept: int) -> Cache:
    """An empty cache, from whose inputs the newest `kept` answers can be given anew."""
    layers, (_, heads, head_dim) = len(params.layers), params.layers[0].query.shape
    inputs = params.embed.shape[0] // form.patch
    empty = (ring.init(form.window * form.patch, heads, head_dim),) * layers
    return Cache(ring.init(context(layers, form) + kept, inputs), empty, empty, form)


def context(layers: int, form: Form) -> int:
    """How many samples before it an answer depends on."""
    return (layers * (form.window - 1) + 1) * form.patch - 1


def norm(x: Float[Array, "*rows dim"], scale: Float[Array, " dim"]) -> Float[Array, "*rows dim"]:
    """Root-mean-square normalisation (Zhang & Sennrich, 2019)."""
    return x * scale / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


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
    logit = logit - jnp.exp(layer.slope[:heads, None]) * age
    # Not infinity: where nothing is there the softmax, and each gradient, would be NaN.
    weight = jax.nn.softmax(jnp.where(seen[..., None, None, :] > 0, logit, -1e30), axis=-1)
    mixed = jnp.einsum("...qhw,...whe->...qhe", weight, values[..., :heads, :])
    x = tokens + jnp.einsum("...qhe,hed->...qd", mixed, layer.out[:heads])
    hidden = jax.nn.gelu(norm(x, layer.scale[1]) @ layer.up[:, :units])
    return x + hidden @ layer.down[:units], weight


def ask(params: Params, token: Float[Array, "*rows dim"]) -> Float[Array, "*rows queries dim"]:
    """The queries of the last layer."""
    token = token[..., None, :]
    return token + params.ahead if len(params.ahead) else token


def read_out(
    params: Params, x: Float[Array, "*rows queries dim"]
) -> Float[Array, "*rows all_outputs"]:
    """The outputs, query by query."""
    out = norm(x, params.scale) @ params.head
    return out.reshape(*out.shape[:-2], -1)


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


def patches(inputs: Float[Array, "rows inputs"], patch: int) -> Float[Array, "tokens numbers"]:
    """The patch that ends at each row, from the first whole one on."""
    tokens = inputs.shape[0] - patch + 1
    return jnp.concatenate([inputs[k : k + tokens] for k in range(patch)], axis=1)


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
    token = patches(inputs * seen[:, None], form.patch) @ params.embed
    seen = seen[form.patch - 1 :]
    reach = (form.window - 1) * form.patch
    for layer in params.layers:
        keys, values = project(layer, token)
        rows = jnp.arange(token.shape[0] - reach)[:, None] + form.patch * jnp.arange(form.window)
        last = layer is params.layers[-1]
        tokens = ask(params, token[reach:]) if last else token[reach:, None]
        x, _ = attend(layer, tokens, keys[rows], values[rows], seen[rows])
        if last:
            return read_out(params, x)
        token, seen = x[:, 0], seen[reach:]
    raise ValueError("an encoder needs at least one layer")


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
