"""Linear forecasters that learn online, and their mixing: the trunk that attention corrects.

Seven experts forecast every channel at every step of the horizon: persistence, seasonal
persistence, two profiles of the season, and three recursive-least-squares (RLS) forecasters of the
change from the newest value. One looks far back in each channel, with weights that all channels
share; how far grows with the horizon. Two see a few values of all channels, their levels and the
place in the season; one of them forgets ten times as fast. All work in units of the running
standard deviation.

Feedback is delayed by nature: step h of a forecast is judged h samples later. RLS is exact under
that delay and uses every step as soon as its truth is there: the gain of a regressor depends on
regressors alone, so it is computed when the regressor is seen, kept in a ring, and applied to the
weights of step h when that step's truth arrives.

References:
    Haykin, Adaptive Filter Theory, 4th ed., 2002, ch. 9 (RLS with forgetting).
    Cesa-Bianchi & Lugosi, Prediction, Learning, and Games, 2006, ch. 2 (exponential weights);
    the losses are discounted and scaled by the least, so that no learning rate has a unit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from adaptive import drift, ring, seasons

LEAST_LAGS, LAGS_A_STEP, MOST_LAGS = 96, 4, 336  # [samples] that the long memory looks back
LONG_FORGETTING = 0.99995
JOINT_LAGS = (0, 1, 2, 4, 8, 16, 32, 64)  # [samples] of all channels, as many as fit
HARMONICS = 4  # of the season
MOST = 128  # regressors of all channels together
LEAST_MEMORY, SEASONS, MOST_MEMORY = 1000, 20, 8192  # [samples], seasons, [samples]
SLOW = 10  # times as long for the slow one of two
CLIP = 10.0  # regressors and targets [standard deviations]: one absurd sample moves little
LARGEST = 100.0  # diagonal of a covariance where nothing is excited, in the long run
SHARPNESS = 5.0  # of the exponential weights


class Regression(NamedTuple):
    """An RLS forecaster: rows of regressors, outputs that each row foretells.

    Its weights are of the last step of the horizon first, as the pairs that mature are, and by lag
    within: what is large is never turned.
    """

    root: Float[Array, "lags lags"]  # of the covariance of the weights
    weights: Float[Array, "horizon outputs lags"]
    pairs: ring.Ring  # (2, rows, lags) regressors and gains to be matured


class State(NamedTuple):
    """What the trunk remembers of one stream."""

    long: Regression  # a row for each channel, one output
    slow: Regression  # one row, an output for each channel
    fast: Regression  # the same, forgetting faster


class Recent(NamedTuple):
    """What the experts see of the past."""

    window: Float[Array, "reach channels"]  # the newest values, oldest first
    mean: Float[Array, " channels"]  # running
    scale: Float[Array, " channels"]  # running standard deviation
    season: seasons.State
    change: drift.State


def reach(horizon: int) -> int:
    """How far back the experts look [samples]."""
    return min(max(LEAST_LAGS, LAGS_A_STEP * horizon), MOST_LAGS)


def memory(season: Int[Array, ""]) -> Float[Array, ""]:
    """How long what is learned lasts [samples]: some seasons."""
    return jnp.clip(SEASONS * season, LEAST_MEMORY, MOST_MEMORY).astype(jnp.float32)


def joint_lags(channels: int) -> tuple[int, ...]:
    """The lags of all channels that the joint forecaster sees."""
    fit = (MOST - 1 - 2 * HARMONICS) // channels - 1  # one more is for the level
    return JOINT_LAGS[: max(fit, 0)]


def regression(rows: int, lags: int, horizon: int, outputs: int) -> Regression:
    """A regression that has seen nothing and forecasts no change."""
    return Regression(
        jnp.eye(lags, dtype=jnp.float32),
        jnp.zeros((horizon, outputs, lags), jnp.float32),
        ring.init(horizon + 1, 2, rows, lags),
    )


def init(channels: int, horizon: int) -> State:
    """A trunk that has seen nothing."""
    lags = joint_lags(channels)
    numbers = 1 + 2 * HARMONICS + (channels * (len(lags) + 1) if lags else 0)
    return State(
        regression(channels, reach(horizon), horizon, 1),
        *(regression(1, numbers, horizon, channels) for _ in ("slow", "fast")),
    )


def take_in(
    root: Float[Array, "lags lags"], projected: Float[Array, " lags"], noise: Float[Array, ""]
) -> tuple[Float[Array, "lags lags"], Float[Array, " lags"]]:
    """Take in one row x of regressors, by S' x: the new S and the gains; see `gain`."""
    power = projected @ projected + noise
    gains = (root @ projected) / power
    return root - gains[:, None] * (projected / (1 + jnp.sqrt(noise / power))), gains


def gain(
    root: Float[Array, "lags lags"],
    regressors: Float[Array, "rows lags"],
    forgetting: Float[Array, ""],
    count: Int[Array, ""],
) -> tuple[Float[Array, "lags lags"], Float[Array, "rows lags"]]:
    """Take in the regressors of one moment.

    With P the inverse of the discounted sum of x x', recursive least squares are

        R = lambda I + X P X',   K = R^-1 X P,   P <- (P - (X P)' K) / lambda.

    Here S with S S' = P is kept instead: in float32 it is as good as P would be in float64, and P
    can not become indefinite. One row x of X after the other, with s = S' x and p = s' s + lambda,

        k = S s / p,   S <- S - k s' / (1 + sqrt(lambda / p)),

    and S <- S / sqrt(lambda) after all. The last row's k is in K already; of several rows
    K = X P / lambda, with P as it is before that division.

    Without excitation forgetting would blow P up. So one direction after the other is taken in as
    if a little of it had been seen, with nothing to learn from: a ridge that is never forgotten.

    Args:
        root: S.
        regressors: X, one row for each channel that shares the weights.
        forgetting: lambda, for one moment.
        count: Number of the moment; says whose turn it is.

    Returns:
        The new S and the gains K.

    References:
        Potter's square root of 1963, as in Bierman, Factorization Methods for Discrete Sequential
        Estimation, 1977, ch. 2; Gunnarsson, Combining tracking and regularization in recursive
        least squares identification, 1996, for the ridge. Should anything not be finite all the
        same, it starts anew and this moment teaches nothing.
    """
    rows, lags = regressors.shape
    # In balance a direction loses as much in the turns of all as it is given in its own.
    given = jnp.sqrt(lags * (1 - forgetting) / LARGEST)
    new, _ = take_in(root, given * root[count % lags], forgetting)
    if rows == 1:
        new, gains = take_in(new, regressors[0] @ new, forgetting)
        gains = gains[None]
    else:

        def one(k: Array, root: Array) -> Array:
            return take_in(root, regressors[k] @ root, forgetting)[0]

        new = lax.fori_loop(0, rows, one, new)
        gains = lax.map(lambda row: new @ (row @ new), regressors) / forgetting
    # What is not finite in the root shows in the gains, now or with the next moment.
    sound = jnp.isfinite(jnp.sum(gains))
    new = jnp.where(sound, new / jnp.sqrt(forgetting), jnp.eye(lags))
    return new, jnp.where(sound, gains, 0.0)


def learn(
    state: Regression,
    count: Int[Array, ""],
    change: Float[Array, "horizon rows outputs"],
    seen: Float[Array, "horizon rows outputs"],
) -> Regression:
    """Correct the weights of every step by the truth that has just arrived.

    Args:
        state: The regression.
        count: Number of the sample that has just arrived.
        change: The newest value minus the one h samples ago, of the last step first, as the pairs
            that mature are [standard deviations].
        seen: 1 where both were measured, else 0.

    Returns:
        The regression with new weights.
    """
    pairs = ring.last(state.pairs, count - 1, change.shape[0])
    regressors, gains = pairs[:, 0], pairs[:, 1]  # (horizon, rows, lags)
    foreseen = jnp.einsum("hrl,hol->hro", regressors, state.weights)
    step = jnp.einsum("hrl,hro->hol", gains, (change - foreseen) * seen)
    return state._replace(weights=state.weights + step)


def observe(
    state: Regression,
    count: Int[Array, ""],
    regressors: Float[Array, "rows lags"],
    forgetting: Float[Array, ""],
) -> Regression:
    """Take in the regressors of the newest moment, whose truth is yet to come."""
    root, gains = gain(state.root, regressors, forgetting, count)
    pairs = ring.push(state.pairs, count, jnp.stack((regressors, gains)))
    return state._replace(root=root, pairs=pairs)


def long_regressors(recent: Recent) -> Float[Array, "channels lags"]:
    """Differences to the newest value, oldest first, in each channel."""
    change = jnp.clip((recent.window - recent.window[-1]) / recent.scale, -CLIP, CLIP)
    # The newest difference is zero by definition; its place holds the bias.
    return change.at[-1].set(1.0).T


def joint_regressors(recent: Recent) -> Float[Array, "1 numbers"]:
    """Some values and the level of all channels, and the place in the season."""
    angle = 2 * jnp.pi * recent.season.phase * jnp.arange(1, HARMONICS + 1)
    place = jnp.concatenate((jnp.sin(angle), jnp.cos(angle))) * (recent.season.lag > 1)
    parts = [jnp.ones(1), place]
    if lags := joint_lags(recent.window.shape[1]):
        rows = jnp.concatenate((recent.window[-1 - np.array(lags)], recent.season.level[None]))
        parts.append(jnp.clip((rows - recent.mean) / recent.scale, -CLIP, CLIP).ravel())
    return jnp.concatenate(parts)[None]


def forecast(
    state: State,
    recent: Recent,
    seasonal: Float[Array, "horizon channels"],
    profiles: Float[Array, "horizon profiles channels"],
) -> Float[Array, "experts horizon channels"]:
    """Forecast with every expert.

    Args:
        state: The trunk.
        recent: What there is to see.
        seasonal: The values one season before each step of the horizon.
        profiles: What is usual of each step's place in the season.

    Returns:
        The forecasts, in the units of the values, in the order of `EXPERTS`.
    """
    newest = recent.window[-1]
    long = jnp.einsum("hl,cl->hc", state.long.weights[:, 0], long_regressors(recent))
    row = joint_regressors(recent)[0]
    slow, fast = (jnp.einsum("hcl,l->hc", one.weights, row) for one in state[1:])
    learned = (one[::-1] * recent.scale for one in (long, slow, fast))
    usual = profiles.transpose(1, 0, 2) - newest
    return jnp.stack((jnp.zeros_like(long), seasonal - newest, *usual, *learned)) + newest


def weights(
    loss: Float[Array, "experts horizon channels"],
    speaks: Bool[Array, " experts"] | None = None,
) -> Float[Array, "experts horizon channels"]:
    """Weigh the experts of every step and channel by their discounted losses; they sum to 1.

    An expert that does not speak has no weight.
    """
    least = jnp.min(loss, axis=0)
    logit = -SHARPNESS * (loss - least) / (least + 1e-12)
    if speaks is not None:
        logit = jnp.where(speaks[:, None, None], logit, -jnp.inf)
    return jax.nn.softmax(logit, axis=0)


def step(
    state: State,
    count: Int[Array, ""],
    recent: Recent,
    past: Float[Array, "horizon channels"],
    known: Float[Array, "horizon channels"],
) -> State:
    """Take in the regressors of the newest sample, then learn from its values.

    In that order a ring is written before it is read, which lets XLA work in place.

    Args:
        state: The trunk.
        count: Number of the newest sample.
        recent: What there is to see, the newest sample included.
        past: By row h - 1 the value h samples ago.
        known: 1 where the newest value and the one h samples ago were both measured.

    Returns:
        The trunk.
    """
    change = jnp.clip((recent.window[-1] - past) / recent.scale, -CLIP, CLIP)[::-1]
    known = known[::-1]
    long = observe(state.long, count, long_regressors(recent), jnp.float32(LONG_FORGETTING))
    row, lasts = joint_regressors(recent), memory(recent.season.lag)
    slow = observe(state.slow, count, row, 1 - 1 / (SLOW * lasts))
    fast = observe(state.fast, count, row, drift.kept(recent.change, lasts, row.shape[1]))
    return State(
        learn(long, count, change[:, :, None], known[:, :, None]),
        learn(slow, count, change[:, None], known[:, None]),
        learn(fast, count, change[:, None], known[:, None]),
    )
