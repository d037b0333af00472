"""The model of one stream: trunk, recall attention and encoder, from one sample to its answer.

    served = trunk + gain_1 recall + gain_2 encoder

Both corrections aim at what the trunk gets wrong. Their gains are a discounted ridge regression on
matured truth, step by step of the horizon, so a correction that does not help is not used.
"""

# pyright: reportIncompatibleMethodOverride=false
# The count of a state hides the method of tuples, which nobody needs.

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import attention, coarse, experts, moments, recall, ring
from adaptive.settings import EXPERTS, KINDS, Level

TRUNK, RECALL, ENCODER, SERVED = (KINDS.index(k) for k in ("trunk", "recall", "encoder", "served"))
STRANGE = 2 * len(recall.SCALES) + 2  # distances at two rates, rareness, departure of the level
DISCOUNT = 0.999  # of losses and gains
RIDGE = 0.02  # of the gains, against the variance of the residual
SEASON_EVERY = 64  # [samples] between two looks for the season
SLOPES = len(recall.SCALES) + 1  # the parameters of recall, whose slopes are kept


class Shape(NamedTuple):
    """What fixes the size of every array."""

    channels: int
    horizon: int  # [samples]
    memory: int  # [samples], a power of two
    window: int  # [samples]
    dim: int
    heads: int
    origins: int  # moments that one gradient step learns from


class Params(NamedTuple):
    """What gradients adjust; shared by all streams of a bank."""

    recall: recall.Params
    encoder: attention.Params


class State(NamedTuple):
    """What is remembered of one stream."""

    count: Int[Array, ""]  # number of the newest sample; -1 before the first
    season: Int[Array, ""]  # [samples]
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    values: ring.Ring | ring.View  # (channels,)
    seen: ring.Ring | ring.View  # (channels,) 1 where measured
    trunk: experts.State
    memory: recall.State
    coarse: coarse.State
    level: Float[Array, " channels"]  # mean of the newest `LEVEL` samples
    cache: attention.Cache
    made: Float[Array, "horizon made channels"]  # newest forecasts: KINDS, slopes of recall
    forecasts: ring.Ring | ring.View  # (horizon, made, channels) the earlier ones
    loss: Float[Array, "kinds horizon channels"]  # discounted squared error [variances]
    moments: Float[Array, "horizon 5"]  # of the corrections, for the gains
    slope: Float[Array, " slopes"]  # of recall's loss, summed since the last gradient step


class Output(NamedTuple):
    """The answer to one sample."""

    forecast: Float[Array, "horizon channels"]  # of the next samples
    spread: Float[Array, "horizon channels"]  # root of the discounted squared error
    strange: Float[Array, " parts"]  # in `STRANGE` ways; -1 where unknown
    error: Float[Array, ""]  # largest one-step error of a channel, in its usual ones
    lag: Int[Array, " nearest"]  # [samples] to the attended moments, most attended first
    weight: Float[Array, " nearest"]  # attention on them
    channel: Float[Array, " channels"]  # share in the distance to them
    loss: Float[Array, " kinds"]  # discounted squared error [variances], mean


def init_params(rng: np.random.Generator, shape: Shape) -> Params:
    """Parameters before any learning."""
    outputs = shape.horizon * shape.channels
    encoder = attention.init_params(
        rng, 2 * shape.channels, outputs, dim=shape.dim, heads=shape.heads
    )
    return Params(recall.init_params(), encoder)


def init(params: Params, shape: Shape) -> State:
    """The state of a stream without samples."""
    channels, horizon = shape.channels, shape.horizon
    zeros = jnp.zeros(channels, jnp.float32)
    rows = shape.memory + recall.SCALES[1]
    return State(
        count=jnp.int32(-1),
        season=jnp.int32(1),
        mean=zeros,
        variance=zeros,
        values=ring.init(rows, channels),
        seen=ring.init(rows, channels),
        trunk=experts.init(channels, horizon),
        memory=recall.init(shape.memory, horizon, channels),
        coarse=coarse.init(shape.memory, channels),
        level=zeros,
        cache=attention.init_cache(params.encoder, shape.window + shape.origins + horizon),
        made=jnp.zeros((horizon, len(KINDS) + SLOPES, channels), jnp.float32),
        forecasts=ring.init(horizon, horizon, len(KINDS) + SLOPES, channels),
        loss=jnp.zeros((len(KINDS), horizon, channels), jnp.float32),
        moments=jnp.zeros((horizon, 5), jnp.float32),
        slope=jnp.zeros(SLOPES, jnp.float32),
    )


def bank(params: Params, shape: Shape, streams: int) -> State:
    """The states of many streams, on a leading axis, each without samples."""
    lead = jax.tree.map(
        lambda a: a if is_ring(a) else a[None], init(params, shape), is_leaf=is_ring
    )
    return jax.tree.map(lambda a: jnp.repeat(a, streams, axis=0), lead)


def is_ring(leaf: object) -> bool:
    """Whether a part of a state is a ring, of all streams or of one."""
    return isinstance(leaf, ring.Ring | ring.View)


def of_stream(bank: State, stream: Int[Array, ""]) -> State:
    """The state of one stream of a bank; its rings are views, not copies."""
    return jax.tree.map(
        lambda a: ring.View(a.rows, stream) if is_ring(a) else a[stream], bank, is_leaf=is_ring
    )


def with_stream(bank: State, stream: Int[Array, ""], state: State) -> State:
    """The bank with a new state of one stream."""
    return jax.tree.map(
        lambda new, old: (
            ring.Ring(new.rows)
            if is_ring(new)
            else lax.dynamic_update_index_in_dim(old, new, stream, 0)
        ),
        state,
        bank,
        is_leaf=is_ring,
    )


def gains(moments: Float[Array, "horizon 5"]) -> Float[Array, "horizon 2"]:
    """Solve for the gains of the corrections, in [0, 1].

    Args:
        moments: Discounted sums of a a, a b, b b, a r and b r over channels, with `a` and `b` the
            corrections and `r` the residual of the trunk.
    """
    aa, ab, bb, ar, br = moments.T
    aa, bb = aa * (1 + RIDGE) + 1e-6, bb * (1 + RIDGE) + 1e-6
    det = aa * bb - ab * ab
    both = jnp.stack(((ar * bb - br * ab) / det, (br * aa - ar * ab) / det), axis=1)
    alone = jnp.stack((ar / aa, br / bb), axis=1)
    # Where one would be negative the other stands alone.
    both = jnp.where((both < 0).any(axis=1, keepdims=True), jnp.where(both < 0, 0, alone), both)
    return jnp.clip(both, 0.0, 1.0)


def judge(
    state: State,
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    seen: Float[Array, " channels"],
    scale: Float[Array, " channels"],
) -> tuple[State, Float[Array, "horizon channels"]]:
    """Measure the forecasts that were made for the newest sample.

    Returns:
        The state with new losses, moments and slopes; and by row h - 1 the trunk's error at the
        forecast made h samples ago [standard deviations], 0 where unknown.
    """
    horizon = state.loss.shape[1]
    steps = jnp.arange(horizon)
    row = ring.row(state.forecasts, count - 1 - steps)
    made = state.forecasts.rows[state.forecasts.stream, 0, row, steps]
    made, slopes = made[:, : len(KINDS)], made[:, len(KINDS) :]
    known = seen * (steps < count)[:, None]  # (horizon, channels)
    error = jnp.clip((x - made.transpose(1, 0, 2)) / scale, -experts.CLIP, experts.CLIP) * known
    rate = jnp.maximum(1 - DISCOUNT, 1.0 / (count + 1))
    loss = state.loss + known * rate * (error**2 - state.loss)

    left = error[TRUNK]
    a, b = left - error[RECALL], left - error[ENCODER]  # the corrections, as cut
    new = jnp.stack(
        [jnp.sum(p * q, axis=1) for p, q in ((a, a), (a, b), (b, b), (a, left), (b, left))]
    )
    moments = state.moments * DISCOUNT + new.T
    # d/d theta of a Huber loss of what recall left.
    pull = jnp.clip(error[RECALL], -1.0, 1.0)
    slope = state.slope - jnp.einsum("hc,hsc->s", pull, slopes) / (horizon * x.shape[0])
    return state._replace(loss=loss, moments=moments, slope=slope), left


def recalled(
    params: recall.Params,
    memory: recall.State,
    count: Int[Array, ""],
    values: ring.Ring | ring.View,
    scale: Float[Array, " channels"],
    lags: int,
) -> tuple[
    recall.State,
    Float[Array, "rows horizon channels"],
    Float[Array, " scales"],
    Array,
    Array,
    Array,
]:
    """Attend to `lags` moments of the memory.

    Returns:
        The memory, which knows the nearest moment now; the correction above its slopes in the
        parameters, the strangeness by scale, and the lags, weights and channel shares of the most
        attended moments.
    """
    distance = recall.distances(memory.far, count, lags)
    rows = recall.weights(params, distance)
    out = recall.correction(memory, count, rows)
    weight, total = rows[0], jnp.sum(rows[1:], axis=1)[:, None, None]
    out = jnp.concatenate((out[:1], out[1:] - total * out[0]))

    logit = recall.logits(params, distance)
    near = recall.nearest(jnp.concatenate((distance, -logit[None])))
    strange = recall.strangeness(near.distance[:-1])
    first = jnp.where(jnp.isfinite(near.distance[1, 0]), near.lag[1, 0], 0)
    lag = jnp.where(jnp.isfinite(near.distance[-1]), near.lag[-1], 0)
    share = jnp.where(lag > 0, weight[jnp.clip(lags - lag, 0, lags - 1)], 0.0)
    unit = recall.unit(memory.far, scale)
    channel = recall.apart_by_channel(values, count, lag, share, unit)
    memory = memory._replace(far=memory.far._replace(lag=first))
    return memory, out, strange, lag, share, channel


def step(
    params: Params,
    state: State,
    x: Float[Array, " channels"],
    seen: Float[Array, " channels"],
    level: Level,
) -> tuple[State, Output]:
    """Take in one sample and answer it.

    Args:
        params: Shared parameters.
        state: The stream.
        x: The sample, centred so that float32 is enough; anything where `seen` is 0.
        seen: 1 where a value was measured, 0 where it is missing.
        level: How much to compute, static.

    Returns:
        The stream with the sample in it, and the answer. Every level keeps everything that a
        higher one needs later, but for distances beyond its memory, which grow anew.
    """
    count = ring.advance(state.count)
    horizon, channels = state.loss.shape[1:]
    foreseen = state.made[0, SERVED]
    x = jnp.where(seen > 0, x, foreseen)
    mean, variance = moments.standardise(state.mean, state.variance, count, x, seen)
    scale = jnp.sqrt(variance) + 1e-6 * jnp.abs(mean) + 1e-12
    usual = jnp.sqrt(state.loss[SERVED, 0]) * scale
    error = jnp.max(seen * jnp.abs(x - foreseen) / (usual + 1e-3 * scale))
    # Rings are written first and read after, which lets XLA work in place.
    state = state._replace(forecasts=ring.push(state.forecasts, count - 1, state.made))
    state, left = judge(state, count, x, seen, scale)

    values = ring.push(state.values, count, x)
    all_seen = ring.push(state.seen, count, seen)
    past = ring.last(values, count - 1, horizon)[::-1]
    past_seen = ring.last(all_seen, count - 1, horizon)[::-1]

    lags = level.memory
    then, then_seen = (
        ring.last(r, count - 1, lags) if lags else r.rows[0, 0, :0] for r in (values, all_seen)
    )
    memory = recall.remember(state.memory, count, left)
    far = recall.compare(memory.far, then, then_seen, x, seen, scale)
    memory = memory._replace(far=far)
    means = coarse.take(state.coarse, count, x, seen, lags)
    level_rate = seen * jnp.maximum(1.0 / (count + 1), 1.0 / moments.LEVEL)
    newest_level = state.level + level_rate * (x - state.level)

    reach = experts.families(horizon)[0].lags
    window = ring.last(values, count, reach)
    # Before the first sample the ring is empty: hold the first value instead of zero.
    rows = jnp.arange(reach - 1, -1, -1)[:, None]
    window = jnp.where(rows <= count, window, window[jnp.maximum(-1 - count, -window.shape[0])])
    trunk = experts.step(state.trunk, count, window, scale, past, past_seen * seen)
    season = lax.cond(
        count % SEASON_EVERY == 0,
        lambda: experts.seasonal_lag(memory.far.distance[-1], memory.far.compared[-1]),
        lambda: jnp.int32(0),
    )
    season = jnp.where(season > 0, season, state.season)

    inputs = jnp.concatenate((jnp.clip((x - mean) / scale, -experts.CLIP, experts.CLIP), left[0]))
    cache = attention.write(params.encoder, state.cache, count, inputs)

    zeros = jnp.zeros((1 + SLOPES, horizon, channels), jnp.float32)
    none = jnp.zeros(recall.NEAREST, jnp.float32)
    by_recall, lag, weight = zeros, none.astype(jnp.int32), none
    strange = jnp.full(len(recall.SCALES), -1.0)
    channel = jnp.zeros(channels, jnp.float32)
    if level.memory:
        memory, by_recall, strange, lag, weight, channel = recalled(
            params.recall, memory, count, values, scale, lags
        )
    by_encoder = zeros[0]
    if level.window:
        out, _ = attention.encode(
            params.encoder, cache, count, window=level.window, heads=level.heads
        )
        by_encoder = out.reshape(horizon, channels)

    ahead = experts.forecast(
        trunk, window, experts.season_of(values, count, season, horizon), scale
    )
    foreseen = jnp.einsum("ehc,ehc->hc", experts.weights(state.loss[: len(EXPERTS)]), ahead)
    gain = gains(state.moments)
    corrected = jnp.stack(
        (
            foreseen,
            foreseen + by_recall[0] * scale,
            foreseen + by_encoder * scale,
            foreseen + (gain[:, :1] * by_recall[0] + gain[:, 1:] * by_encoder) * scale,
        )
    )
    made = jnp.concatenate((ahead, corrected, by_recall[1:])).transpose(1, 0, 2)
    state = state._replace(
        count=count,
        season=season,
        mean=mean,
        variance=variance,
        values=values,
        seen=all_seen,
        trunk=trunk,
        memory=memory,
        coarse=means,
        level=newest_level,
        cache=cache,
        made=made,
    )
    spread = jnp.sqrt(state.loss[SERVED]) * scale
    loss = jnp.mean(state.loss, axis=(1, 2))
    off = moments.departure(newest_level, mean, scale, count)
    strange = jnp.concatenate((strange, means.strange, off[None]))
    return state, Output(corrected[-1], spread, strange, error, lag, weight, channel, loss)
