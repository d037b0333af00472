"""Gated delta layers: attention whose whole past is one matrix a head, a few numbers wide.

With each sample the matrix forgets a little, and what it holds under the sample's key moves towards
the sample's value, as far as the sample asks for; the query reads it. So a sample costs the same
however far back the layer reaches, and what is kept stays what it is when the parameters move. In
return there are no weights on moments to be looked at.

With `q`, `k` of length one, `a` and `b` between 0 and 1, all of the newest token,

    S <- a S + b (v - a S k) k',    o = S q.

Gradients go through whole chunks of samples from the matrix before each, which is kept.

References:
    Schlag et al., Linear transformers are secretly fast weight programmers, 2021, for the delta
    rule; Yang et al., Gated delta networks, 2025, for the gate, and Parallelizing linear
    transformers with the delta rule over sequence length, 2024, for a chunk as one triangular
    system. Widrow & Hoff, 1960, for the rule itself.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import ring
from adaptive.layers import Layer, Params, ask, finish, norm, patches, read_out

LASTS = 2.0, 8.0, 32.0, 128.0  # [samples] that heads remember at first, in turn


class Gates(NamedTuple):
    """Of what is written, and of what is forgotten; the logarithm of the latter [1 / sample]."""

    weight: Float[Array | np.ndarray, "dim 2 heads"]
    bias: Float[Array | np.ndarray, "2 heads"]


class Form(NamedTuple):
    """What is fixed beside the sizes of the parameters."""

    window: int  # samples that are looked through where no matrix was kept
    patch: int = 1  # samples in a token
    chunk: int = 32  # samples between two matrices that are kept


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "states", "kept"],
    meta_fields=["form"],
)
@dataclass(frozen=True)
class Cache:
    """The matrices of each layer, and what is needed to go through the newest chunks again."""

    inputs: ring.Ring  # (inputs,)
    states: tuple[Any, ...]  # of each layer: (heads, head_dim, head_dim), values by keys
    kept: tuple[ring.Ring, ...]  # the same, after each chunk
    form: Form


def gates(dim: int, heads: int) -> Gates:
    """What heads do at first: half of a value is written, and each forgets in its time."""
    forget = np.log(np.expm1(1.0 / np.resize(LASTS, heads)))
    return Gates(np.zeros((dim, 2, heads)), np.stack((np.zeros(heads), forget)))


def init_cache(params: Params, form: Form, kept: int) -> Cache:
    """An empty cache, that can go through a whole chunk within the newest `kept` answers again."""
    _, heads, head_dim = params.layers[0].query.shape
    layers, inputs = len(params.layers), params.embed.shape[0] // form.patch
    chunks = -(-kept // form.chunk) + 2  # the one that is begun, and the one before all of them
    return Cache(
        ring.init(kept + form.chunk + form.patch - 1, inputs),
        (jnp.zeros((heads, head_dim, head_dim)),) * layers,
        (ring.init(chunks, heads, head_dim, head_dim, copies=1),) * layers,
        form,
    )


def context(_layers: int, form: Form) -> int:
    """How many samples before it an answer is made of, where no matrix was kept."""
    return form.window + form.patch - 2


def project(
    layer: Layer, token: Float[Array, "*rows dim"]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Keys and values of tokens, the share that is written, and the logarithm of what stays."""
    normed = norm(token, layer.scale[0])
    keys = unit(jnp.einsum("...d,dhe->...he", normed, layer.key))
    values = jnp.einsum("...d,dhe->...he", normed, layer.value)
    gate = jnp.einsum("...d,dgh->...gh", normed, layer.fading.weight) + layer.fading.bias
    return keys, values, jax.nn.sigmoid(gate[..., 0, :]), -jax.nn.softplus(gate[..., 1, :])


def unit(x: Float[Array, "*rows head_dim"]) -> Float[Array, "*rows head_dim"]:
    """Make vectors of length one; of zero, zero."""
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def queries(
    layer: Layer, tokens: Float[Array, "*rows queries dim"], heads: int | None = None
) -> Float[Array, "*rows queries heads head_dim"]:
    """The queries of tokens, in the first heads."""
    normed = norm(tokens, layer.scale[0])
    return unit(jnp.einsum("...d,dhe->...he", normed, layer.query[:, :heads]))


def look(
    layer: Layer,
    tokens: Float[Array, "queries dim"],
    state: Float[Array, "heads head_dim head_dim"],
    heads: int | None = None,
    units: int | None = None,
) -> Float[Array, "queries dim"]:
    """Take tokens through a layer, its first heads and hidden units, once it has taken them in."""
    query = queries(layer, tokens, heads)
    return finish(layer, tokens, jnp.sum(state[:heads] * query[..., None, :], axis=-1), units)


def write(
    params: Params, cache: Cache, count: Int[Array, ""], inputs: Float[Array, " inputs"]
) -> tuple[Cache, Float[Array, " dim"]]:
    """Take in the newest sample, number `count`; return also the token that the last layer sees."""
    form = cache.form
    rows = ring.push(cache.inputs, count, inputs)
    patch = inputs if form.patch == 1 else ring.last(rows, count, form.patch).ravel()
    token, states, kept = patch @ params.embed, [], []
    for k, layer in enumerate(params.layers):
        key, value, share, stays = project(layer, token)
        left = jnp.exp(stays)[:, None, None] * cache.states[k]
        new = share[:, None] * (value - jnp.sum(left * key[:, None], axis=-1))
        states.append(left + new[..., None] * key[:, None])
        kept.append(ring.push(cache.kept[k], count // form.chunk, states[k]))
        if k < len(params.layers) - 1:
            token = look(layer, token[None], states[k])[0]
    return Cache(rows, tuple(states), tuple(kept), form), token


def encode(
    params: Params,
    cache: Cache,
    token: Float[Array, " dim"],
    *,
    heads: int | None = None,
    units: int | None = None,
) -> Float[Array, " outputs"]:
    """Read the last layer out.

    Args:
        params: The projections.
        cache: At least one sample is written.
        token: Of the newest, from `write`.
        heads: How many of the first heads to use, static; all when None.
        units: How many of the first hidden units to use, static; all when None.
    """
    x = look(params.layers[-1], ask(params, token), cache.states[-1], heads, units)
    return read_out(params, x)


def encode_rows(
    params: Params,
    rows: Float[Array, "rows inputs"],
    states: tuple[Float[Array, "heads head_dim head_dim"], ...],
    patch: int,
) -> Float[Array, "tokens outputs"]:
    """What `encode` returns after each row that ends a whole patch; differentiable in `params`.

    All rows at once: with the matrix `S` before them, `g` the sum of the logarithms of what stays
    up to each, and `D[t, i] = exp(g[t] - g[i])` for i <= t, what is written is the solution of

        u[t] = b[t] (v[t] - exp(g[t]) S k[t] - sum over i < t of D[t, i] (k[i] k[t]) u[i]).
    """
    tokens = patches(rows, patch) @ params.embed
    earlier = jnp.tril(jnp.ones((len(tokens), len(tokens))))
    for layer, state in zip(params.layers, states, strict=True):
        last = layer is params.layers[-1]
        key, value, share, stays = project(layer, tokens)
        sums = jnp.cumsum(stays, axis=0).T
        left = jnp.exp(sums)
        # Not exp(-infinity): of that a gradient would be NaN.
        decay = jnp.exp(jnp.where(earlier > 0, sums[:, :, None] - sums[:, None, :], -1e30))
        lower = share.T[:, :, None] * jnp.einsum("the,ihe->hti", key, key) * decay
        wanted = value.swapaxes(0, 1) - jnp.einsum("ht,hve,the->htv", left, state, key)
        new = solve(lower * (1 - jnp.eye(len(tokens))), share.T[:, :, None] * wanted)
        asking = ask(params, tokens) if last else tokens[:, None]
        query = queries(layer, asking)
        mixed = jnp.einsum("ht,hve,tqhe->tqhv", left, state, query)
        alike = jnp.einsum("tqhe,ihe->hqti", query, key) * decay[:, None]
        x = finish(layer, asking, mixed + jnp.einsum("hqti,hiv->tqhv", alike, new))
        if last:
            return read_out(params, x)
        tokens = x[:, 0]
    raise ValueError("an encoder needs at least one layer")


def solve(
    lower: Float[Array, "heads rows rows"], right: Float[Array, "heads rows n"]
) -> Float[Array, "heads rows n"]:
    """Solve `(I + lower) x = right`, where `lower` is 0 on the diagonal and above it.

    By the inverse, of ever larger blocks on the diagonal. A call of LAPACK would take less code,
    but a program that holds one, read from disk, crashes a process that has not used LAPACK yet.
    """
    rows = lower.shape[-1]
    size, whole = 1, 1 << (rows - 1).bit_length()
    padded = jnp.pad(lower, ((0, 0), (0, whole - rows), (0, whole - rows)))
    inverse = jnp.ones((len(lower), whole, 1, 1))
    while size < whole:
        # Of each two blocks on the diagonal the one below the first, beside the second.
        blocks = padded.reshape(-1, whole // (2 * size), 2, size, whole // (2 * size), 2, size)
        below = jnp.einsum("hbipbjq->hbipjq", blocks)[:, :, 1, :, 0]
        first, second = inverse[:, 0::2], inverse[:, 1::2]
        corner = -second @ below @ first
        zeros = jnp.zeros_like(corner)
        inverse = jnp.block([[first, zeros], [corner, second]])
        size *= 2
    inverse = lax.stop_gradient(inverse[:, 0, :rows, :rows])

    def solved(_: object, b: Array) -> Array:
        return inverse @ b

    def solved_back(_: object, b: Array) -> Array:
        return inverse.swapaxes(1, 2) @ b

    return lax.custom_linear_solve(lambda x: x + lower @ x, right, solved, solved_back)


def matured(
    params: Params, cache: Cache, newest: Int[Array, ""], moments: int
) -> tuple[Float[Array, "moments outputs"], Int[Array, " moments"], Float[Array, " moments"]]:
    """Give the answers to samples that were seen anew; differentiable in `params`.

    Args:
        params: The projections.
        cache: Made to keep as many answers as there are moments up to the newest sample.
        newest: Number of the last sample that may be among them; the last is that of a chunk.
        moments: How many: those of a chunk.

    Returns:
        The answers, the numbers of their samples, and 1 where such a sample was, else 0.
    """
    form = cache.form
    if moments != form.chunk:
        raise ValueError(f"a chunk has {form.chunk} moments, {moments} were asked for")
    chunk = (newest + 1) // form.chunk - 1
    end = (chunk + 1) * form.chunk - 1
    rows = ring.last(cache.inputs, end, form.chunk + form.patch - 1)
    states = tuple(ring.read(one, chunk - 1) for one in cache.kept)
    numbers = end - jnp.arange(form.chunk - 1, -1, -1)
    known = (numbers >= 0).astype(jnp.float32)
    return encode_rows(params, rows, states, form.patch), numbers, known


def encode_window(
    params: Params, inputs: Float[Array, "rows inputs"], seen: Float[Array, " rows"], form: Form
) -> Float[Array, "queries outputs"]:
    """The same for every row that has its whole context before it, as if nothing had been before.

    Args:
        params: The projections.
        inputs: `context(layers, form) + queries` rows, oldest first.
        seen: 1 where a row is of the stream, 0 before its start.
        form: Of the encoder.
    """
    _, heads, head_dim = params.layers[0].query.shape
    nothing = (jnp.zeros((heads, head_dim, head_dim)),) * len(params.layers)
    return encode_rows(params, inputs * seen[:, None], nothing, form.patch)[form.window - 1 :]
