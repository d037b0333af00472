"""The encoder of a model: attention over the newest tokens, or gated delta layers.

Both kinds are modules of functions of the same names, and each cache knows of which it is.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from adaptive import attention, compression, delta, layers
from adaptive.layers import Params
from adaptive.settings import Level, Shape

Cache = attention.Cache | delta.Cache


def init_params(rng: np.random.Generator, shape: Shape) -> Params:
    """Parameters before any learning."""
    params = layers.init_params(
        rng,
        2 * shape.channels,
        shape.horizon * shape.channels,
        {"attention": attention.slopes, "delta": delta.gates}[shape.encoder],
        dim=shape.dim,
        heads=shape.heads,
        layers=shape.layers,
        patch=shape.patch,
        queries=shape.horizon if shape.decoder else 0,
    )
    return compression.rounded(params) if shape.int8 else params


def init_cache(params: Params, shape: Shape) -> Cache:
    """Nothing has been seen; gradients will go through as many moments as a step learns from."""
    if shape.encoder == "delta":
        form = delta.Form(shape.window, shape.patch, shape.origins)
        return delta.init_cache(params, form, shape.origins + shape.horizon)
    form = attention.Form(shape.window, shape.patch)
    return attention.init_cache(params, form, shape.origins + shape.horizon)


def of(cache: Cache) -> Any:
    """The module that a cache is of."""
    return attention if isinstance(cache, attention.Cache) else delta


def encode(
    params: Params, cache: Cache, token: Float[Array, " dim"], count: Int[Array, ""], level: Level
) -> Float[Array, " outputs"]:
    """Read the encoder out as a level does, after the newest sample has been written."""
    heads, units = level.heads or None, level.units or None
    if isinstance(cache, delta.Cache):
        return delta.encode(params, cache, token, heads=heads, units=units)
    window = level.window_samples
    return attention.encode(params, cache, token, count, window=window, heads=heads, units=units)[0]
