"""The model of one stream: trunk, recall and encoder, from one sample to its answer.

Experts forecast, the trunk weighs them, recall and encoder correct the trunk, and `corrections`
learns from matured truth how far each counts in what is served.
"""

# pyright: reportIncompatibleMethodOverride=false
# The count of a state hides the method of tuples, which nobody needs.

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adaptive import (
    analogues,
    attention,
    coarse,
    corrections,
    drift,
    encoder,
    experts,
    glitch,
    layers,
    moments,
    ranks,
    recall,
    ring,
    seasons,
)
from adaptive.settings import EXPERTS, FEEDBACK_REACH, KINDS, Level, Shape

TRUNK, RECALL, SERVED = (KINDS.index(kind) for kind in ("trunk", "recall", "served"))
DISTANCES = len(recall.SCALES)  # sample by sample, and of means
STRANGE = 2 * DISTANCES + 2  # ways: these, rareness, departure of the level
SLOPES = analogues.PARAMETERS  # whose slopes are kept
LEAST_ERROR = 1e-3  # [standard deviations] that is usual of a step


class Params(NamedTuple):
    """What gradients adjust; shared by all streams of a bank."""

    recall: analogues.Params
    encoder: layers.Params


class State(NamedTuple):
    """What is remembered of one stream."""

    count: Int[Array, ""]  # number of the newest sample; -1 before the first
    season: seasons.State
    mean: Float[Array, " channels"]  # of all values, for what is strange
    variance: Float[Array, " channels"]  # of all; forecasters go by that in `glitch`
    values: ring.Ring  # by phase; NaN where nothing was measured
    glitch: glitch.State
    sound: ring.Ring  # (channels,) the values as forecasters see them
    believed: ring.Ring  # (channels,) 1 where measured and no glitch
    drift: drift.State
    trunk: experts.State
    far: recall.Distances  # that of `SEASON_SCALE` among them
    memory: analogues.State
    coarse: coarse.State
    level: Float[Array, " channels"]  # mean of the newest `LEVEL` samples
    cache: encoder.Cache
    made: Float[Array, "horizon made channels"]  # newest forecasts: KINDS, slopes of recall
    forecasts: ring.Ring  # (horizon, made, channels) the earlier ones
    loss: Float[Array, "kinds horizon channels"]  # discounted squared error [variances]
    corrections: corrections.State
    slope: Float[Array, " slopes"]  # of recall's loss, summed since the last gradient step
    ranks: ranks.State  # of what was strange, by level


class Output(NamedTuple):
    """The answer to one sample."""

    forecast: Float[Array, "horizon channels"]  # of the next samples
    spread: Float[Array, "horizon channels"]  # root of the discounted squared error
    strange: Float[Array, " parts"]  # in `STRANGE` ways; -1 where unknown
    error: Float[Array, ""]  # largest one-step error of a channel, in its usual ones
    lag: Int[Array, " nearest"]  # [samples] to the attended moments, most attended first
    weight: Float[Array, " nearest"]  # attention on them
    channel: Float[Array, " channels"]  # share in the distance to the nearest moments
    expert: Float[Array, " experts"]  # mean weight of each forecaster in the trunk
    gain: Float[Array, " corrections"]  # how much of recall's and the encoder's correction counts
    loss: Float[Array, " kinds"]  # discounted squared error [variances], mean


def init_params(rng: np.random.Generator, shape: Shape) -> Params:
    """Parameters before any learning."""
    return Params(analogues.init_params(), encoder.init_params(rng, shape))


def init(params: Params, shape: Shape) -> State:
    """The state of a stream without samples."""
    channels, horizon = shape.channels, shape.horizon
    zeros = jnp.zeros(channels, jnp.float32)
    return State(
        count=jnp.int32(-1),
        season=seasons.init(shape.memory, channels),
        mean=zeros,
        variance=zeros,
        values=ring.init_by_phase(shape.memory, channels),
        glitch=glitch.init(channels),
        sound=ring.init(max(shape.memory, horizon + 1), channels),
        believed=ring.init(horizon + 1, channels),
        drift=drift.init(),
        trunk=experts.init(channels, horizon),
        far=recall.init(shape.memory, channels, season=True),
        memory=analogues.init(FEEDBACK_REACH * shape.memory, horizon, channels),
        coarse=coarse.init(shape.memory, channels),
        level=zeros,
        cache=encoder.init_cache(params.encoder, shape),
        made=jnp.zeros((horizon, len(KINDS) + SLOPES, channels), jnp.float32),
        forecasts=ring.init(horizon, horizon, len(KINDS) + SLOPES, channels),
        loss=jnp.zeros((len(KINDS), horizon, channels), jnp.float32),
        corrections=corrections.init(horizon),
        slope=jnp.zeros(SLOPES, jnp.float32),
        ranks=ranks.init(shape.levels, STRANGE, DISTANCES),
    )


def bank(params: Params, shape: Shape, streams: int) -> State:
    """The states of many streams, on a leading axis, each without samples."""
    lead = jax.tree.map(
        lambda a: a if ring.is_view(a) else a[None], init(params, shape), is_leaf=ring.is_view
    )
    return jax.tree.map(lambda a: jnp.repeat(a, streams, axis=0), lead)


def anew(params: Params, bank: State) -> State:
    """Make anew, in all streams, what is kept of the encoder's parameters once they have moved."""
    if isinstance(bank.cache, attention.Cache):
        bank = bank._replace(cache=attention.reproject(params.encoder, bank.cache, bank.count))
    return bank


def judge(
    state: State,
    count: Int[Array, ""],
    x: Float[Array, " channels"],
    seen: Float[Array, " channels"],
    scale: Float[Array, " channels"],
) -> tuple[State, Float[Array, "horizon channels"]]:
    """Measure the forecasts that were made for the newest sample.

    Returns:
        The state with new losses, corrections and slopes; and by row h - 1 the trunk's error at the
        forecast made h samples ago [standard deviations], 0 where unknown.
    """
    horizon = state.loss.shape[1]
    steps = jnp.arange(horizon)
    row = ring.row(state.forecasts, count - 1 - steps)
    made = state.forecasts.rows[state.forecasts.which, 0, row, steps]
    made, slopes = made[:, : len(KINDS)], made[:, len(KINDS) :]
    known = seen * (steps < count)[:, None]  # (horizon, channels)
    error = jnp.clip((x - made.transpose(1, 0, 2)) / scale, -experts.CLIP, experts.CLIP) * known
    change = drift.watch(
        state.drift, count, error[SERVED, 0] ** 2, state.loss[SERVED, 0], state.season.lag
    )
    lasts = jnp.minimum(experts.memory(state.season.lag), change.since)
    rate = jnp.maximum(1.0 / lasts, 1.0 / (count + 1))
    loss = state.loss + known * rate * (error**2 - state.loss)

    kept = drift.kept(change, experts.memory(state.season.lag))
    learned = corrections.learn(state.corrections, error, known, loss, kept)
    # d/d theta of a Huber loss of what recall left. All steps count alike: far ones err more.
    usual = jnp.sqrt(jnp.mean(loss[TRUNK], axis=1, keepdims=True)) + LEAST_ERROR
    pull = jnp.clip(error[RECALL], -1.0, 1.0) * jnp.mean(usual) / usual
    slope = state.slope - jnp.einsum("hc,hsc->s", pull, slopes) / (horizon * x.shape[0])
    state = state._replace(drift=change, loss=loss, corrections=learned, slope=slope)
    return state, error[TRUNK]


def looked_up(
    far: recall.Distances,
    count: Int[Array, ""],
    values: ring.Ring,
    scale: Float[Array, " channels"],
    lags: int,
) -> tuple[
    recall.Distances,
    Float[Array, " scales"],
    Int[Array, "scales nearest"],
    Float[Array, " channels"],
]:
    """Look the nearest of `lags` moments up.

    Returns:
        The distances, which know the nearest moment now; the strangeness by scale, the lags of the
        nearest moments, 0 where there are fewer, and the share of each channel in the distance.
    """
    near = recall.nearest(far, recall.distances(far, count, lags))
    there = jnp.isfinite(near.distance)
    lag = jnp.where(there, near.lag, 0)
    channel = recall.apart_by_channel(
        values, count, lag[1], there[1].astype(jnp.float32), recall.unit(far, scale)
    )
    return far._replace(lag=lag[1, 0]), recall.strangeness(near.distance), lag, channel


def followed(
    state: State,
    count: Int[Array, ""],
    past: Float[Array, "horizon channels"],
    seen: Float[Array, "horizon channels"],
    scale: Float[Array, " channels"],
) -> Float[Array, "horizon channels"]:
    """What the trunk got wrong after the moment `horizon` samples ago [standard deviations].

    Args:
        state: The forecasts.
        count: Number of the newest sample.
        past: The newest values, oldest first.
        seen: 1 where they were measured.
        scale: Running standard deviation.
    """
    horizon = past.shape[0]
    made = state.forecasts.rows[
        state.forecasts.which, 0, ring.row(state.forecasts, count - horizon), :, TRUNK
    ]
    error = jnp.clip((past - made) / scale, -experts.CLIP, experts.CLIP)
    return error * seen * (count >= horizon)


def tokens(
    sound: Float[Array, "*rows channels"],
    left: Float[Array, "*rows channels"],
    mean: Float[Array, " channels"],
    scale: Float[Array, " channels"],
) -> Float[Array, "*rows inputs"]:
    """What the encoder sees of samples: values, and the trunk's errors [standard deviations]."""
    values = jnp.clip((sound - mean) / scale, -experts.CLIP, experts.CLIP)
    return jnp.concatenate((values, left), axis=-1)


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
    # Rings are written first and read after, which lets XLA work in place.
    measured = jnp.where(seen > 0, x, jnp.nan)
    values = ring.push(state.values, count, measured)

    mean, variance = moments.standardise(state.mean, state.variance, count, x, seen)
    deviation = jnp.sqrt(variance) + 1e-6 * jnp.abs(mean) + 1e-12

    others = count - jnp.stack((jnp.int32(1), state.season.lag, 2 * state.season.lag))
    usual, believed = glitch.believe(
        state.glitch,
        count,
        x,
        seen,
        foreseen,
        ring.read(values, others),
        lambda: ring.last(values, count, glitch.FIRST).T,
    )
    scale = glitch.scale(usual)
    usual_error = jnp.sqrt(state.loss[SERVED, 0]) * scale
    error = jnp.max(seen * jnp.abs(x - foreseen) / (usual_error + 1e-3 * scale))
    sound = jnp.where(believed > 0, x, foreseen)
    state = state._replace(forecasts=ring.push(state.forecasts, count - 1, state.made))
    state, left = judge(state, count, sound, believed, scale)
    all_sound = ring.push(state.sound, count, sound)
    all_believed = ring.push(state.believed, count, believed)
    past = ring.last(all_sound, count, horizon + 1)
    past_believed = ring.last(all_believed, count, horizon + 1)

    lags = level.memory_samples
    then = ring.last_by_phase(values, count - 1, lags)
    far = recall.compare(state.far, count, then, measured, deviation)
    means = coarse.take(state.coarse, count, x, seen, lags)
    level_rate = seen * jnp.maximum(1.0 / (count + 1), 1.0 / moments.LEVEL)
    newest_level = state.level + level_rate * (x - state.level)
    season = seasons.take(state.season, count, sound, believed, far)

    reach = experts.reach(horizon)
    window = ring.last(all_sound, count, reach)
    # Before the first sample the ring is empty: hold the first value instead of zero.
    rows = jnp.arange(reach - 1, -1, -1)[:, None]
    window = jnp.where(rows <= count, window, window[jnp.maximum(-1 - count, -window.shape[0])])
    recent = experts.Recent(window, usual.mean, scale, season, state.drift)
    trunk = experts.step(state.trunk, count, recent, past[-2::-1], past_believed[-2::-1] * believed)

    inputs = tokens(sound, left[0], usual.mean, scale)
    write = encoder.of(state.cache).write
    cache, token = write(params.encoder, state.cache, count, inputs)

    rings = all_sound, season.profiles
    seasonal, profiles = (seasons.ahead(r, count, season.lag, horizon) for r in rings)
    # Before a season has passed its profiles are of another one.
    profiles = jnp.where(season.since < season.lag, seasonal[:, None], profiles)
    ahead = experts.forecast(trunk, recent, seasonal, profiles)
    trust = experts.weights(state.loss[: len(EXPERTS)])
    foreseen = jnp.einsum("ehc,ehc->hc", trust, ahead)
    memory, key = analogues.remember(
        state.memory,
        count,
        (foreseen - season.level) / scale,
        (window[-analogues.VALUES :] - season.level) / scale,
        followed(state, count, past[1:], past_believed[1:], scale),
    )

    zeros = by_recall = jnp.zeros((1 + SLOPES, horizon, channels), jnp.float32)
    lag, weight = jnp.zeros(analogues.SHOWN, jnp.int32), jnp.zeros(analogues.SHOWN, jnp.float32)
    strange, channel = jnp.full(DISTANCES, -1.0), jnp.zeros(channels, jnp.float32)
    if lags:
        far, strange, near, channel = looked_up(far, count, values, deviation, lags)
        among = analogues.candidates(memory, count, season.lag, near.ravel(), lags)
        attention_on, by_recall = analogues.attend(params.recall, memory, count, key, among)
        lag, weight = analogues.shown(attention_on[0], among)
    by_encoder = zeros[0]
    if level.window_samples:
        out = encoder.encode(params.encoder, cache, token, count, level)
        by_encoder = out.reshape(horizon, channels)

    recalled, encoded = (corrections.bounded(c, state.loss) for c in (by_recall[0], by_encoder))
    corrected, served = corrections.serve(
        state.corrections, state.loss, (ahead - foreseen) / scale, recalled, encoded
    )
    moved = jnp.stack((jnp.zeros_like(served), recalled, encoded, corrected, served))
    answers = foreseen + moved * scale
    made = jnp.concatenate((ahead, answers, by_recall[1:])).transpose(1, 0, 2)
    state = state._replace(
        count=count,
        season=season,
        mean=mean,
        variance=variance,
        values=values,
        glitch=usual,
        sound=all_sound,
        believed=all_believed,
        trunk=trunk,
        far=far,
        memory=memory,
        coarse=means,
        level=newest_level,
        cache=cache,
        made=made,
    )
    spread = jnp.sqrt(state.loss[SERVED]) * scale
    loss = jnp.mean(state.loss, axis=(1, 2))
    off = moments.departure(newest_level, mean, deviation, count)
    strange = jnp.concatenate((strange, means.strange, off[None]))
    spoke = jnp.mean(trust, axis=(1, 2)), jnp.mean(corrections.counted(state.corrections), axis=0)
    return state, Output(answers[-1], spread, strange, error, lag, weight, channel, *spoke, loss)
