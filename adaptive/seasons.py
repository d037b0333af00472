"""The season of a stream: how long it lasts, its level, and what each place in it usually brings.

A season is found from the distances to the values each lag ago. Its profiles are exponential
averages over seasons of the value at each place,

    profile(t) = profile(t - season) + rate (x(t) - profile(t - season)),

plain averages while the seasons are few. Where there is no season the lag is 1, and they are
exponentially smoothed values.

References:
    Brown, Smoothing, Forecasting and Prediction of Discrete Time Series, 1963; Winters,
    Forecasting sales by exponentially weighted moving averages, 1960, for the seasonal form.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from adaptive import recall, ring

EVERY = 64  # [samples] between two looks for the season
SHORTEST = 24  # [samples] of the mean that forecasts are compared without
RATES = (0.3, 0.1)  # of the profiles, for each season
LONGEST = 1 << 24  # [samples] that are counted
AS_NEAR, NEAR = 1.1, 0.01  # relative, [variances]: how far two averages differ by chance
SOUND = 0.1  # how much of the average of a lag must be there, in [0, 1]
CLEAR, GONE = 0.8, 0.95  # of the distances between: so near is a season; and none any more
TIMES = 4  # seasons that must have been compared
NEIGHBOUR = 16  # so many times shorter than a season is what two measures of it may differ by
STAY = 1.5  # relative: a season is given up for a longer one that is nearer by so much


class State(NamedTuple):
    """What is known of the season of one stream."""

    lag: Int[Array, ""]  # [samples]; 1 where none is known
    since: Int[Array, ""]  # [samples] since it was found
    phase: Float[Array, ""]  # place in it, in [0, 1); goes on when it is measured anew
    level: Float[Array, " channels"]  # mean of about the newest one
    profiles: ring.Ring  # (rates, channels)
    before: Float[Array, "rates channels"]  # the profiles one season before the next sample


def init(memory: int, channels: int) -> State:
    """No season; it may last half as many samples as there is memory."""
    return State(
        jnp.int32(1),
        jnp.int32(-1),
        jnp.float32(0.0),
        jnp.zeros(channels, jnp.float32),
        ring.init(memory, len(RATES), channels, copies=1),
        jnp.zeros((len(RATES), channels), jnp.float32),
    )


def take(
    state: State,
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    believed: Float[Array, " channels"],
    far: recall.Distances,
) -> State:
    """Take in a sample.

    Args:
        state: What was known.
        count: Number of the sample.
        x: The sample as forecasters see it.
        believed: 1 where it was measured and is believed.
        far: Distances, those of `SEASON_SCALE` among them.
    """

    def look() -> Array:
        known = jnp.repeat(far.compared[-1], recall.BLOCK)
        return nearest(recall.by_lag(far), known, state.lag)

    lag = lax.cond(count % EVERY == 0, look, lambda: state.lag)
    since = jnp.where(same(lag, state.lag), jnp.minimum(state.since + 1, LONGEST), 0)
    rate = believed * jnp.maximum(1.0 / (count + 1), 1.0 / jnp.maximum(lag, SHORTEST))
    level = state.level + rate * (x - state.level)
    rates = jnp.maximum(jnp.asarray(RATES, jnp.float32), 1.0 / (1 + since // lag))[:, None]
    # In the first season a profile is what was seen or, where nothing was, foreseen.
    rates = jnp.where(since < lag, 1.0, rates * believed)
    profiles = ring.push(state.profiles, count, state.before + rates * (x - state.before))
    before = ring.read(profiles, count + 1 - lag)
    phase = (state.phase + 1.0 / lag) % 1.0
    return State(lag, since, phase, level, profiles, before)


def ahead(
    values: ring.Ring,
    count: Int[Array, ""],
    lag: Int[Array, ""],
    horizon: int,
) -> Float[Array, "horizon *shape"]:
    """Read the rows one season (or as few whole seasons as needed) before each step.

    Args:
        values: A row for each sample.
        count: Number of the newest sample.
        lag: The season [samples], at least 1.
        horizon: How many steps.

    Returns:
        For step h the row `lag * ceil(h / lag) - h` samples ago.
    """
    steps = jnp.arange(1, horizon + 1)
    ago = lag * (-(-steps // lag)) - steps
    return ring.read(values, count - ago)


def same(lag: Int[Array, ""], other: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether two lags differ by no more than a season's own irregularity."""
    return NEIGHBOUR * jnp.abs(lag - other) <= lag


def nearest(
    distance: Float[Array, " lags"], known: Float[Array, " lags"], now: Int[Array, ""]
) -> Int[Array, ""]:
    """Find the season: the least distance among lags at which the stream comes back.

    At a season and at two values are alike, at one and a half, two and a half, and half a season
    they are clearly more different, however strong level and noise are beside it. What is seen
    fewer than `TIMES` times may do so by chance. By chance, too, a multiple of the season is often
    nearer than the season itself. So the shortest lag that the least one is a multiple of is taken,
    if it is as near but for chance.

    Args:
        distance: Slowly averaged squared distance to the value each lag ago, for lags
            `len(distance)` down to 1 [variances]; about 2 (1 - autocorrelation).
        known: How much of the average is there, in [0, 1].
        now: The season so far [samples]. Kept unless a shorter one is as near or a longer one
            clearly nearer; given up where the stream comes back at it no more.

    Returns:
        The lag [samples]; 1 where there is no season.
    """
    most = distance.shape[0] // 2
    lag = jnp.arange(1, most + 1)
    known = known[::-1]
    by_lag = jnp.where(known > SOUND, distance[::-1] / jnp.maximum(known, SOUND), jnp.inf)

    def at(halves: int) -> Array:
        """The distance at so many half lags, infinite where it is not known."""
        asked = halves * lag // 2
        value = by_lag[jnp.clip(asked - 1, 0, 2 * most - 1)]
        return jnp.where((asked > 0) & (asked <= 2 * most), value, jnp.inf)

    alike = jnp.maximum(at(2), at(4))
    apart = jnp.minimum(at(1), jnp.minimum(at(3), at(5)))
    enough = 1.0 - jnp.exp(-TIMES * lag / recall.SEASON_SCALE)
    there = (known[:most] > enough) & jnp.isfinite(alike)
    contrast = jnp.where(there & (apart > NEAR), alike / jnp.maximum(apart, NEAR), 1.0)
    near_by = by_lag[:most]
    candidate = jnp.where(contrast < CLEAR, near_by, jnp.inf)
    least = jnp.min(candidate)
    first = jnp.min(jnp.where(candidate <= least, lag, most))
    times = (2 * first + lag) // (2 * lag)  # first / lag, rounded
    near = candidate <= AS_NEAR * least + NEAR
    whole = (2 * jnp.abs(first - times * lag) <= times) & (times > 0)
    first = jnp.min(jnp.where(whole & near, lag, first))
    here = jnp.clip(now - 1, 0, most - 1)
    stays = candidate[here] <= STAY * least + NEAR
    first = jnp.where(stays & (now < first) & ~same(now, first), now, first)
    gone = there[here] & (contrast[here] > GONE)
    return jnp.where(jnp.isfinite(least), first, jnp.where(gone, 1, now))
