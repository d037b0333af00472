"""What is usual of the values of a stream: running mean, deviation and level, by channel."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LONG = 8192  # [samples] of the running mean and standard deviation
BURN_IN = 32  # [samples] before outliers are cut
SPIKE = 30.0  # [standard deviations] there; at 10 channels of rare spikes would seem to be quiet
LEVEL = 96  # [samples] of the mean whose departure from the long one is watched
FIRST_LEVEL = 50  # samples before that
FARTHEST = 100.0  # [variances] squared departures of a channel are cut there


def standardise(
    mean: Float[Array, " channels"],
    variance: Float[Array, " channels"],
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    seen: Float[Array, "..."],
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Move the running mean and variance (Welford, with a horizon of `LONG`) to the new sample."""
    rate = seen * jnp.maximum(1.0 / (count + 1), 1.0 / LONG)
    cut = jnp.where(count < BURN_IN, jnp.inf, SPIKE * jnp.sqrt(variance))
    # A channel that never moved has no deviation to cut by.
    cut = jnp.where(variance > 0, cut, jnp.inf)
    off = jnp.clip(x - mean, -cut, cut)
    return mean + rate * off, variance + rate * ((1 - rate) * off * off - variance)


def departure(
    level: Float[Array, " channels"],
    mean: Float[Array, " channels"],
    scale: Float[Array, " channels"],
    count: Int[Array, ""],
) -> Float[Array, ""]:
    """How far the level of the newest samples is from the long-run mean [standard deviations]."""
    apart = jnp.minimum(((level - mean) / scale) ** 2, FARTHEST)
    return jnp.where(count >= FIRST_LEVEL, jnp.sqrt(jnp.mean(apart)), -1.0)
