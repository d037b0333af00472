"""What no forecaster should learn from: values that cannot be, in short runs.

A value is a glitch if it lies far from what was foreseen, far from what is usual, and near neither
the value before it nor those one and two seasons ago. The forecasters then see what was foreseen in
its place, as if it had not been measured; all that looks for anomalies sees the value itself. What
goes on is no glitch: after `PERSISTS` far samples, soon one after another, all are believed. Nor is
what happens often: a value counts in the usual error by as much as a glitch must exceed it, so that
no more than one in `FAR`^2 samples can be one. Of the first samples nothing is known; when there
are `FIRST`, mean and deviation are made anew of those that are not outliers among them.

References:
    Huber, Robust Statistics, 1981, ch. 1, for cutting what is beyond a multiple of the scale, and
    for a scale that is itself made of cut errors; Tukey, Exploratory Data Analysis, 1977, for
    fences around the quantiles.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import moments, order

FAR = 8.0  # usual errors to what was foreseen
OUT = 6.0  # standard deviations to the mean
PERSISTS = 3  # samples
FADE = 0.9  # what is left of a run after a sample that was not far
ALIKE = 0.3  # of the error: so near another value must be to make this one likely
MEMORY = 1024  # [samples] of the usual error
FIRST = 64  # samples before anything is a glitch
QUANTILES = 0.1, 0.9
FENCE = 3.0  # spans between them beyond which the first are outliers


class State(NamedTuple):
    """What is usual of one stream, glitches left out."""

    square: Float[Array, " channels"]  # of the cut error
    run: Float[Array, " channels"]  # how many of the newest samples were far, discounted
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]


def init(channels: int) -> State:
    """Nothing seen."""
    return State(*(jnp.zeros(channels, jnp.float32) for _ in State._fields))


def scale(state: State) -> Float[Array, " channels"]:
    """The standard deviation, never 0."""
    return jnp.sqrt(state.variance) + 1e-6 * jnp.abs(state.mean) + 1e-12


def believe(
    state: State,
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    seen: Float[Array, " channels"],
    foreseen: Float[Array, " channels"],
    others: Float[Array, "others channels"],
    first: Callable[[], Float[Array, "channels first"]],
) -> tuple[State, Float[Array, " channels"]]:
    """Take in a sample.

    Args:
        state: What is usual.
        count: Number of the sample.
        x: The sample.
        seen: 1 where it was measured.
        foreseen: What was forecast for it.
        others: The value before it, then those one and two seasons before it.
        first: Gives the newest `FIRST` values, NaN where none was measured; asked once.

    Returns:
        The state, and 1 where the value was measured and is to be believed, else 0.
    """
    error = x - foreseen
    cut = FAR * jnp.sqrt(state.square)
    goes_on, *recurs = jnp.abs(x - others) < ALIKE * jnp.abs(error)
    out = jnp.abs(x - state.mean) > OUT * scale(state)
    known = goes_on | (recurs[0] & recurs[1])
    far = (jnp.abs(error) > cut) & out & ~known & (count >= FIRST)
    run = jnp.where(seen > 0, jnp.where(far, state.run + 1, FADE * state.run), state.run)
    believed = seen * ~(far & (run <= PERSISTS))
    rate = seen * jnp.maximum(1.0 / (count + 1), 1.0 / MEMORY)
    bounded = jnp.where(count < FIRST, error**2, jnp.minimum(error**2, cut**2))
    square = state.square + rate * (bounded - state.square)
    mean, variance = moments.standardise(state.mean, state.variance, count, x, believed)
    state = State(square, run, mean, variance)
    return lax.cond(count == FIRST - 1, lambda: begin(state, first()), lambda: state), believed


def begin(state: State, values: Float[Array, "channels first"]) -> State:
    """Make mean and deviation anew of the first values that are no outliers among them."""
    low, high = (lax.map(partial(order.quantile, share=q), values)[:, None] for q in QUANTILES)
    beyond = FENCE * (high - low)
    # A channel that hardly moves may have only its spikes to be known by.
    sound = (values >= low - beyond) & (values <= high + beyond) | (high == low)
    sound = sound & ~jnp.isnan(values)
    many = jnp.maximum(jnp.sum(sound, axis=1), 1)
    mean = jnp.sum(jnp.where(sound, values, 0.0), axis=1) / many
    off = jnp.where(sound, values - mean[:, None], 0.0)
    variance = jnp.sum(off**2, axis=1) / many
    # Values that stay have errors of at most four variances, on average.
    return State(jnp.minimum(state.square, 4 * variance), state.run, mean, variance)
