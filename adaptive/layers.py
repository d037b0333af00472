"""What encoders of both kinds are made of: embedding, norms, residuals, feed-forward, readout.

A layer is causal attention over what came before, exact (`adaptive.attention`) or by one matrix a
head (`adaptive.delta`), and a feed-forward, each behind a norm and beside a residual. A token is
the newest sample of all channels, or a patch of the newest ones. The last layer is read with one
query, or, as a decoder, with one for each step ahead. The output starts at zero: an untrained
encoder changes nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Layer(NamedTuple):
    """One layer; `heads * head_dim = dim`."""

    query: Float[Array, "dim heads head_dim"]
    key: Float[Array, "dim heads head_dim"]
    value: Float[Array, "dim heads head_dim"]
    out: Float[Array, "heads head_dim dim"]
    fading: Any  # how the past fades: arrays of the kind of encoder
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


def init_params(
    rng: np.random.Generator,
    inputs: int,
    outputs: int,
    fading: Callable[[int, int], Any],
    *,
    dim: int,
    heads: int,
    layers: int = 1,
    patch: int = 1,
    queries: int = 0,
) -> Params:
    """Random projections, scaled by fan-in; a head of zeros.

    NumPy makes them: each operation of JAX's is compiled first, which no start has time for.

    Args:
        rng: Draws them.
        inputs: Numbers of a sample.
        outputs: Numbers of the answer, of all queries.
        fading: Makes that of a layer, in NumPy, of `dim` and `heads`.
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
        return Layer(
            query=dense(dim, *each),
            key=dense(dim, *each),
            value=dense(dim, *each),
            out=dense(dim, *each[1:], dim),
            fading=jax.tree.map(array, fading(dim, heads)),
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


def norm(x: Float[Array, "*rows dim"], scale: Float[Array, " dim"]) -> Float[Array, "*rows dim"]:
    """Root-mean-square normalisation (Zhang & Sennrich, 2019)."""
    return x * scale / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def ask(params: Params, token: Float[Array, "*rows dim"]) -> Float[Array, "*rows queries dim"]:
    """The queries of the last layer."""
    token = token[..., None, :]
    return token + params.ahead if len(params.ahead) else token


def finish(
    layer: Layer,
    tokens: Float[Array, "*rows queries dim"],
    mixed: Float[Array, "*rows queries heads head_dim"],
    units: int | None = None,
) -> Float[Array, "*rows queries dim"]:
    """Take tokens, and what the first heads found for them, through the rest of a layer."""
    x = tokens + jnp.einsum("...qhe,hed->...qd", mixed, layer.out[: mixed.shape[-2]])
    hidden = jax.nn.gelu(norm(x, layer.scale[1]) @ layer.up[:, :units])
    return x + hidden @ layer.down[:units]


def read_out(
    params: Params, x: Float[Array, "*rows queries dim"]
) -> Float[Array, "*rows all_outputs"]:
    """The outputs, query by query."""
    out = norm(x, params.scale) @ params.head
    return out.reshape(*out.shape[:-2], -1)


def patches(inputs: Float[Array, "rows inputs"], patch: int) -> Float[Array, "tokens numbers"]:
    """The patch that ends at each row, from the first whole one on."""
    tokens = inputs.shape[0] - patch + 1
    return jnp.concatenate([inputs[k : k + tokens] for k in range(patch)], axis=1)
