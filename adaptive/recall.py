"""Recall: the query is now, the keys are all past moments of the stream within the memory.

Is this strange: the distance to the nearest moments, at several time scales. Why: which moments
those are, and which channels keep them apart. What comes next: they are among those that
`adaptive.analogues` asks.

The distance of now to the moment L samples ago, at scale m, is the exponentially weighted mean of
the squared distances of the samples that led to both,

    D(L) <- (1 - 1/m) D(L) + 1/m mean over channels of ((x(t) - x(t - L)) / sd)^2,

so that windows are compared without ever being compared twice: O(lags x channels) a sample. Beside
D runs the same average W(L) of what was there to compare (missing values, the time before the
first sample and lags that a smaller level left out all count nothing); D/W is the distance, and it
is used where W says that most of a window was compared. The unit sd of a channel is learned: where
the nearest moment foretells a channel well, its deviations count more, as if its standard
deviation were smaller, down to `LEAST_UNIT` of it.

References:
    Mueen's and Yeh's matrix profile (ICDM 2016) compares windows by distance as well; here the
    comparison is causal, recursive and exponentially windowed, and neighbours closer than
    `BLOCK` samples count once instead of an exclusion zone. Vaswani et al. 2017 for the softmax.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import ring

SCALES = (3, 12, 48)  # [samples]
SEASON_SCALE = 8192  # [samples] of the slow average that finds the season
DELAY = 120  # [samples] the newest ones do not count, or an event would explain itself
NEAREST = 5  # moments
BLOCK = 16  # [samples]; two moments of one block are one
FARTHEST = 100.0  # [variances] squared distances are cut there
SEASON_CUT = 9.0  # [variances] those for the season: a few glitches must not hide it
COMPARED = 0.6  # how much of the average must be there, in [0, 1]
COMMON = 0.1  # share of the memory that a common moment is near to
LEAST_UNIT = 0.6  # of a channel, against its standard deviation
SETTLED = 50  # comparisons before a channel's unit is believed
SLOW = 6400  # [samples] of the running mean behind it
CUT = 5.0  # [deviations] more counts as this much in it


class Distances(NamedTuple):
    """How far now is from each moment of the past. Lags run from the memory's length down to 1."""

    distance: Float[Array, "scales lags"]  # D
    compared: Float[Array, "scales lags"]  # W
    apart: Float[Array, " channels"]  # mean squared difference to what followed the nearest moment
    looked: Float[Array, ""]  # how many of them there were, up to `SLOW`
    lag: Int[Array, ""]  # [samples] to the nearest moment; 0 where there is none


class Nearest(NamedTuple):
    """The nearest moments for each of several distances, nearest first."""

    distance: Float[Array, "rows nearest"]  # infinite where there are fewer
    lag: Int[Array, "rows nearest"]  # [samples]


def init(memory: int, channels: int, scales: int) -> Distances:
    """No distances yet."""
    empty = jnp.zeros((scales, memory), jnp.float32)
    zeros = jnp.zeros(channels, jnp.float32)
    return Distances(empty, empty, zeros, jnp.float32(0.0), jnp.int32(0))


def unit(far: Distances, deviation: Float[Array, " channels"]) -> Float[Array, " channels"]:
    """What a difference of 1 is in each channel, from its standard deviation.

    Channels differ in weight, but their mean weight is 1: a single one has its deviation.
    """
    learned = jnp.clip(jnp.sqrt(far.apart), LEAST_UNIT * deviation, deviation)
    learned = jnp.where(far.looked >= SETTLED, learned, deviation)
    return learned * jnp.sqrt(jnp.mean((deviation / learned) ** 2))


def compare(
    far: Distances,
    then: Float[Array, "channels lags"],
    now: Float[Array, " channels"],
    deviation: Float[Array, " channels"],
) -> Distances:
    """Take in how far the newest sample is from each of the past.

    Args:
        far: The distances before it.
        then: The past samples, from `lags` ago down to 1 ago; NaN where nothing was measured. A
            level that attends to less memory hands in fewer; the lags beyond are forgotten and
            grow anew later.
        now: The newest sample; NaN where it was not measured.
        deviation: The running standard deviation.

    Returns:
        The new distances; the nearest moment is yet to be found.
    """
    (channels, lags), (scales, memory) = then.shape, far.distance.shape
    if not lags:
        nothing = jnp.zeros_like(far.distance)
        return far._replace(distance=nothing, compared=nothing, lag=jnp.int32(0))
    beyond, weight = memory - lags, 1.0 / unit(far, deviation)

    def add(channel: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        apart = ((then[channel] - now[channel]) * weight[channel]) ** 2
        known = ~jnp.isnan(apart)
        cut, season_cut = (
            jnp.where(known, jnp.minimum(apart, most), 0.0) for most in (FARTHEST, SEASON_CUT)
        )
        total, season_total, there = sums
        return total + cut, season_total + season_cut, there + known

    # Channel by channel: XLA's sum over them takes twice as long. The length is always `channels`,
    # but XLA can not tell, or it would compute a loop of one anew for all that reads the sums.
    length = jnp.where(far.looked >= 0, channels, 0)
    nothing = jnp.zeros(lags)
    total, season_total, there = lax.fori_loop(0, length, add, (nothing, nothing, nothing))
    of_season = jnp.arange(scales)[:, None] == len(SCALES)
    apart = jnp.where(of_season, season_total, total) / jnp.maximum(there, 1.0)
    there = jnp.minimum(there, 1.0)
    rate = 1.0 / jnp.asarray((*SCALES, SEASON_SCALE)[:scales], jnp.float32)[:, None]
    distance = far.distance[:, beyond:] * (1 - rate) + rate * apart
    compared = far.compared[:, beyond:] * (1 - rate) + rate * there
    if beyond:
        distance = jnp.pad(distance, ((0, 0), (beyond, 0)))
        compared = jnp.pad(compared, ((0, 0), (beyond, 0)))
    far = far._replace(distance=distance, compared=compared)
    # What followed the nearest moment, against what came now.
    row = jnp.clip(lags - far.lag, 0, lags - 1)
    off = (now - then[:, row]) ** 2
    known = ~jnp.isnan(off) & (far.lag > 0) & (far.lag <= lags)
    off = jnp.where(known, jnp.minimum(off, (CUT * deviation) ** 2), far.apart)
    looked = jnp.minimum(far.looked + known.any(), SLOW)
    mean = far.apart + (off - far.apart) / jnp.maximum(looked, 1.0)
    return far._replace(apart=mean, looked=looked)


def distances(far: Distances, count: Int[Array, ""], lags: int) -> Float[Array, "scales lags"]:
    """Read the distances to the moments that count: compared enough, and old enough."""
    rows = []  # one by one: XLA takes several times as long for all at once
    for k, scale in enumerate(SCALES):
        distance, compared = far.distance[k, -lags:], far.compared[k, -lags:]
        youngest = jnp.minimum(DELAY, jnp.maximum(count // 4, 2 * scale))
        counts = (compared > COMPARED) & (jnp.arange(lags, 0, -1) >= youngest)
        rows.append(jnp.where(counts, distance / jnp.maximum(compared, COMPARED), jnp.inf))
    return jnp.stack(rows)


def nearest(distance: Float[Array, "rows lags"]) -> Nearest:
    """Find the `NEAREST` smallest distances of different blocks of lags.

    First the least of each block, then the blocks: XLA's top-k sorts everything on a CPU, which
    takes 1300 us for 4096 lags and 5 us for 256 blocks.
    """
    rows, lags = distance.shape
    blocks = distance.reshape(rows, lags // BLOCK, BLOCK)
    least, block = lax.top_k(-jnp.min(blocks, axis=2), NEAREST)
    chosen = jnp.take_along_axis(blocks, block[:, :, None], axis=1)
    within = jnp.min(
        jnp.where(chosen <= -least[:, :, None], jnp.arange(BLOCK, 0, -1), BLOCK), axis=2
    )
    return Nearest(-least, lags - BLOCK * (block + 1) + within)


def strangeness(distance: Float[Array, "scales nearest"]) -> Float[Array, " scales"]:
    """Mean root distance to the nearest moments, at each scale; -1 while there are none."""
    there = jnp.isfinite(distance)
    root = jnp.sqrt(jnp.where(there, distance, 0.0))
    mean = jnp.sum(root, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    return jnp.where(there.any(axis=1), mean, -1.0)


def rareness(distance: Float[Array, " lags"]) -> Float[Array, ""]:
    """Root distance within which the share `COMMON` of the memory lies; -1 while there is none.

    What comes again and again has near neighbours, and still few of them: the nearest alone
    would not tell.
    """
    least = jnp.min(distance.reshape(-1, BLOCK), axis=1)
    there = jnp.sum(jnp.isfinite(least))
    place = jnp.maximum(jnp.round(COMMON * (there - 1)), 0)
    # The place of each if they were sorted: for so few that takes a third of the time of sorting.
    before = jnp.sum(least < least[:, None], axis=1)
    here = jnp.max(jnp.where((before <= place) & jnp.isfinite(least), least, 0.0))
    return jnp.where(there > 0, jnp.sqrt(here), -1.0)


def apart_by_channel(
    values: ring.Ring,
    count: Int[Array, ""],
    lag: Int[Array, " nearest"],
    weight: Float[Array, " nearest"],
    scale: Float[Array, " channels"],
) -> Float[Array, " channels"]:
    """Share of each channel in the distance to the attended moments; they sum to 1."""
    window = SCALES[1]
    now = ring.last(values, count, window)
    then = jnp.stack([ring.last(values, count - lag[k], window) for k in range(NEAREST)])
    apart = ((then - now) / scale[:, None]) ** 2  # (nearest, channels, window)
    apart = jnp.mean(jnp.where(jnp.isnan(apart), 0.0, apart), axis=2)
    apart = jnp.minimum(weight @ apart, 1e12)
    return apart / jnp.maximum(jnp.sum(apart), 1e-12)
