"""The memory at a second rate: the same comparison on means of a few samples.

Moments several times as far back, and windows several times as long, for a part of the cost.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import moments, recall, ring

RATE = 4  # [samples] in a mean


class State(NamedTuple):
    """What is remembered of one stream in means of `RATE` samples."""

    far: recall.Distances
    values: ring.Ring  # by phase; NaN where none was measured; the newest is of those so far
    total: Float[Array, " channels"]  # of the newest
    there: Float[Array, " channels"]  # samples in it
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    strange: Float[Array, " parts"]  # at the last whole mean


def init(memory: int, channels: int) -> State:
    """An empty memory of `memory` means."""
    zeros = jnp.zeros(channels, jnp.float32)
    return State(
        recall.init(memory, channels),
        ring.init_by_phase(memory, channels),
        zeros,
        zeros,
        zeros,
        zeros,
        jnp.full(len(recall.SCALES) + 1, -1.0, jnp.float32),
    )


def look(
    coarse: State,
    token: Int[Array, ""],
    then: Float[Array, "channels phases blocks"],
    now: Float[Array, " channels"],
    mean: Float[Array, " channels"],
    variance: Float[Array, " channels"],
) -> State:
    """Compare the newest mean, number `token`, once it is whole, with those before."""
    lags = then.shape[1] * then.shape[2]
    deviation = jnp.sqrt(variance) + 1e-6 * jnp.abs(mean) + 1e-12
    far = recall.compare(coarse.far, token, then, now, deviation)
    coarse = coarse._replace(far=far, mean=mean, variance=variance)
    if not lags:
        return coarse._replace(strange=jnp.full_like(coarse.strange, -1.0))
    distance = recall.distances(far, token, lags)
    near = recall.nearest(far, distance)
    strange = jnp.append(recall.strangeness(near.distance), recall.rareness(distance[1]))
    lag = jnp.where(jnp.isfinite(near.distance[1, 0]), near.lag[1, 0], 0)
    return coarse._replace(far=far._replace(lag=lag), strange=strange)


def take(
    coarse: State,
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    seen: Float[Array, " channels"],
    lags: int,
) -> State:
    """Take a sample into the newest mean of `RATE`; compare the mean when it is whole."""
    token, part = count // RATE, count % RATE
    total = jnp.where(part == 0, 0.0, coarse.total) + x * seen
    there = jnp.where(part == 0, 0.0, coarse.there) + seen
    measured = (there > 0).astype(jnp.float32)
    newest = total / jnp.maximum(there, 1.0)
    values = ring.push(coarse.values, token, jnp.where(there > 0, newest, jnp.nan))
    mean, variance = moments.standardise(coarse.mean, coarse.variance, token, newest, measured)
    then, now = ring.last_by_phase(values, token - 1, lags), ring.read(values, token)
    coarse = coarse._replace(values=None, total=total, there=there)
    # A loop of one or none, not a condition: what a condition hands on is copied.
    whole = (part == RATE - 1).astype(jnp.int32)

    def compare(_: Array, coarse: State) -> State:
        return look(coarse, token, then, now, mean, variance)

    return lax.fori_loop(0, whole, compare, coarse)._replace(values=values)
