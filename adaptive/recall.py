"""Recall: the query is now, the keys are all past moments of the stream within the memory.

Is this strange: the distance to the nearest moments, at several time scales. Why: which moments
those are, and which channels keep them apart. What comes next: they are among those that
`adaptive.analogues` asks.

The distance of now to the moment L samples ago, at scale m, is the exponentially weighted mean of
the squared distances of the samples that led to both,

    D(L) <- (1 - 1/m) D(L) + 1/m mean over channels of ((x(t) - x(t - L)) / sd)^2,

so that windows are compared without ever being compared twice: O(lags x channels) a sample. A value
that is missing in the past is as far off as one picked at random; where now is not measured
nothing is compared. Beside D runs the same average W of what was there to compare, block by block
of lags (the time before the first sample and lags that a smaller level left out count nothing); D/W
is the distance, and it is used where W says that most of a window was compared. The unit sd of a
channel is learned: where the nearest moment foretells a channel well, its deviations count more, as
if its standard deviation were smaller, down to `LEAST_UNIT` of it.

Lags lie by phase (`adaptive.ring`): lag j + 1 in phase j of the last column, `BLOCK` more in every
column to the left. A column is a block of neighbours, of which one counts. The oldest block of the
memory never does: the newest sample has been written where it begins.

References:
    Mueen's and Yeh's matrix profile (ICDM 2016) compares windows by distance as well; here the
    comparison is causal, recursive and exponentially windowed, and neighbours closer than
    `BLOCK` samples count once instead of an exclusion zone. Vaswani et al. 2017 for the softmax.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import order, ring

SCALES = (3, 12, 48)  # [samples]
SEASON_SCALE = 8192  # [samples] of the slow average that finds the season
DELAY = 120  # [samples] the newest ones do not count, or an event would explain itself
NEAREST = 5  # moments
BLOCK = ring.PHASES  # [samples]; two moments of one block are one
UNKNOWN = 2.0  # [variances] the squared distance to what is missing: that of two at random
FARTHEST = 100.0  # [variances] squared distances are cut there
# Averages over tens of samples are kept in 16 bits, half the memory to go through: what they miss
# is at most a part in 2048 of them for each sample that they are of. Those over thousands are not.
HALF, UNIT = jnp.float16, 512.0  # whose largest number is 65504, and least exact one 2^-14
SEASON_CUT = 9.0  # [variances] those for the season: a few glitches must not hide it
COMPARED = 0.6  # how much of the average must be there, in [0, 1]
COMMON = 0.1  # share of the memory that a common moment is near to
LEAST_UNIT = 0.6  # of a channel, against its standard deviation
SETTLED = 50  # comparisons before a channel's unit is believed
SLOW = 6400  # [samples] of the running mean behind it
CUT = 5.0  # [deviations] more counts as this much in it


class Distances(NamedTuple):
    """How far now is from each moment of the past."""

    distance: ring.View  # D of `SCALES`, in half precision and units of 1 / `UNIT`, see there
    season: ring.View  # D of `SEASON_SCALE`, or of none: (0 or 1, phases, blocks)
    compared: Float[Array, "scales blocks"]  # W
    apart: Float[Array, " channels"]  # mean squared difference to what followed the nearest moment
    looked: Float[Array, ""]  # how many of them there were, up to `SLOW`
    lag: Int[Array, ""]  # [samples] to the nearest moment; 0 where there is none


class Nearest(NamedTuple):
    """The nearest moments for each of several distances, nearest first."""

    distance: Float[Array, "rows nearest"]  # infinite where there are fewer
    lag: Int[Array, "rows nearest"]  # [samples]


def init(memory: int, channels: int, *, season: bool = False) -> Distances:
    """No distances yet; whether those that find a season are wanted, too."""
    blocks, zeros = memory // BLOCK, jnp.zeros(channels, jnp.float32)
    return Distances(
        ring.View(jnp.zeros((1, len(SCALES), BLOCK, blocks), HALF)),
        ring.View(jnp.zeros((1, int(season), BLOCK, blocks), jnp.float32)),
        jnp.zeros((len(SCALES) + season, blocks), jnp.float32),
        zeros,
        jnp.float32(0.0),
        jnp.int32(0),
    )


def lag_of(phase: Array | int, block: Int[Array, "*n"], blocks: int) -> Int[Array, "*n"]:
    """The lag [samples] that lies there, in a memory of so many blocks."""
    return BLOCK * (blocks - 1 - block) + phase + 1


def unit(far: Distances, deviation: Float[Array, " channels"]) -> Float[Array, " channels"]:
    """What a difference of 1 is in each channel, from its standard deviation.

    Channels differ in weight, but their mean weight is 1: a single one has its deviation.
    """
    learned = jnp.clip(jnp.sqrt(far.apart), LEAST_UNIT * deviation, deviation)
    learned = jnp.where(far.looked >= SETTLED, learned, deviation)
    return learned * jnp.sqrt(jnp.mean((deviation / learned) ** 2))


def compare(
    far: Distances,
    count: Int[Array, ""],
    then: Float[Array, "channels phases blocks"],
    now: Float[Array, " channels"],
    deviation: Float[Array, " channels"],
) -> Distances:
    """Take in how far the newest sample is from each of the past.

    Args:
        far: The distances before it.
        count: Its number.
        then: The samples before it, by phase; NaN where nothing was measured. A level that attends
            to less memory hands in fewer; the lags beyond are forgotten and grow anew later.
        now: The newest sample; NaN where it was not measured.
        deviation: The running standard deviation.

    Returns:
        The new distances; the nearest moment is yet to be found.
    """
    (channels, _, blocks), (scales, memory) = then.shape, far.compared.shape
    if not blocks:
        return far._replace(compared=jnp.zeros_like(far.compared), lag=jnp.int32(0))
    beyond, weight = memory - blocks, 1.0 / unit(far, deviation)
    measured = ~jnp.isnan(now)
    here = jnp.where(measured, now, 0.0)

    def add(channel: Array, total: Array) -> Array:
        apart = ((then[channel] - here[channel]) * weight[channel]) ** 2
        apart = jnp.where(jnp.isnan(apart), UNKNOWN, jnp.minimum(apart, FARTHEST))
        return total + apart * measured[channel]

    # The length is always `channels`, but XLA can not tell, or it would compute a loop of one anew
    # for all that reads the sum.
    length = jnp.where(far.looked >= 0, channels, 0)
    total = lax.fori_loop(0, length, add, jnp.zeros(then.shape[1:]))
    apart = total / jnp.maximum(jnp.sum(measured), 1)
    rate = 1.0 / jnp.asarray((*SCALES, SEASON_SCALE)[:scales], jnp.float32)
    rate = jnp.where(measured.any(), rate, 0.0)
    compared = far.compared[:, beyond:]

    def averaged(view: ring.View, first: int, cut: float, unit: float) -> ring.View:
        """Take the sample into the distances of some scales."""

        def average(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            rows, compared = carry
            start = (view.which, k, 0, beyond)
            old = lax.dynamic_slice(rows, start, (1, 1, BLOCK, blocks)).astype(jnp.float32)
            old = jnp.where(compared[first + k] > 0, old, 0.0)
            new = old + rate[first + k] * (unit * jnp.minimum(apart, cut) - old)
            return lax.dynamic_update_slice(rows, new.astype(rows.dtype), start), compared

        # What a loop only reads is carried, too: else XLA would copy the array it is a part of.
        rows, _ = lax.fori_loop(0, view.rows.shape[1], average, (view.rows, compared))
        return replace(view, rows=rows)

    distance, season = averaged(far.distance, 0, FARTHEST, UNIT), far.season
    if season.rows.shape[1]:
        season = averaged(season, len(SCALES), SEASON_CUT, 1.0)
    block = jnp.arange(blocks)
    there = (lag_of(BLOCK - 1, block, blocks) <= count) & (block + beyond > 0)
    compared = jnp.pad(compared + rate[:, None] * (there - compared), ((0, 0), (beyond, 0)))
    far = far._replace(distance=distance, season=season, compared=compared)
    # What followed the nearest moment, against what came now.
    back = jnp.maximum(far.lag - 1, 0)
    off = (now - then[:, back % BLOCK, blocks - 1 - jnp.minimum(back // BLOCK, blocks - 1)]) ** 2
    known = ~jnp.isnan(off) & (far.lag > 0) & (far.lag <= BLOCK * blocks)
    off = jnp.where(known, jnp.minimum(off, (CUT * deviation) ** 2), far.apart)
    looked = jnp.minimum(far.looked + known.any(), SLOW)
    mean = far.apart + (off - far.apart) / jnp.maximum(looked, 1.0)
    return far._replace(apart=mean, looked=looked)


def distances(far: Distances, count: Int[Array, ""], lags: int) -> Float[Array, "scales blocks"]:
    """Read the least distance of each block; infinite unless compared enough and old enough."""
    view, blocks, rows = far.distance, lags // BLOCK, []
    start = (view.which, 0, 0, view.rows.shape[3] - blocks)
    here = lax.dynamic_slice(view.rows, start, (1, len(SCALES), BLOCK, blocks))[0]
    here = here.astype(jnp.float32) / UNIT
    youngest_lag = lag_of(0, jnp.arange(blocks), blocks)
    for k, (scale, least) in enumerate(zip(SCALES, jnp.min(here, axis=1), strict=True)):
        compared = far.compared[k, -blocks:]
        old = jnp.minimum(DELAY, jnp.maximum(count // 4, 2 * scale))
        counts = (compared > COMPARED) & (youngest_lag >= old)
        rows.append(jnp.where(counts, least / jnp.maximum(compared, COMPARED), jnp.inf))
    return jnp.stack(rows)


def nearest(far: Distances, distance: Float[Array, "scales blocks"]) -> Nearest:
    """Find the `NEAREST` smallest distances, as `distances` gives them."""
    blocks, view = distance.shape[1], far.distance

    least, block = lax.map(lambda row: order.smallest(row, NEAREST), distance)
    scale = jnp.arange(len(SCALES))[:, None]
    within = view.rows[view.which, scale, :, block + view.rows.shape[3] - blocks]
    phase = jax.vmap(jax.vmap(order.first_least))(within.astype(jnp.float32))
    return Nearest(least, lag_of(phase, block, blocks))


def by_lag(far: Distances) -> Float[Array, " lags"]:
    """Read the distances of the season's scale, from the longest lag down to 1."""
    return far.season.rows[far.season.which, 0, ::-1].T.ravel()


def strangeness(distance: Float[Array, "scales nearest"]) -> Float[Array, " scales"]:
    """Mean root distance to the nearest moments, at each scale; -1 while there are none."""
    there = jnp.isfinite(distance)
    root = jnp.sqrt(jnp.where(there, distance, 0.0))
    mean = jnp.sum(root, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    return jnp.where(there.any(axis=1), mean, -1.0)


def rareness(distance: Float[Array, " blocks"]) -> Float[Array, ""]:
    """Root distance within which the share `COMMON` of the memory lies; -1 while there is none.

    What comes again and again has near neighbours, and still few of them: the nearest alone
    would not tell.
    """
    common = order.quantile(distance, COMMON)
    return jnp.where(jnp.isfinite(common), jnp.sqrt(common), -1.0)


def apart_by_channel(
    values: ring.Ring,
    count: Int[Array, ""],
    lag: Int[Array, " nearest"],
    weight: Float[Array, " nearest"],
    scale: Float[Array, " channels"],
) -> Float[Array, " channels"]:
    """Share of each channel in the distance to the attended moments; they sum to 1."""
    window = count - jnp.arange(SCALES[1])
    now, then = ring.read(values, window), ring.read(values, window - lag[:, None])
    apart = ((then - now) / scale) ** 2  # (nearest, window, channels)
    apart = jnp.mean(jnp.where(jnp.isnan(apart), 0.0, apart), axis=1)
    apart = jnp.minimum(weight @ apart, 1e12)
    return apart / jnp.maximum(jnp.sum(apart), 1e-12)
