"""Recall attention on forecasts: what the trunk got wrong after similar moments corrects it.

The query is now, the keys are past moments, the values are the errors that followed them. Not all
of the past is asked: the moments whole seasons ago, and those that the distances of
`adaptive.recall` found nearest. Of each moment and channel is kept

    the path that the trunk foresaw from there, less the level of a season,
    the newest values there, less that level,
    the path of errors that followed, once all of it is known,

and a channel attends by how alike paths and values are, with less weight for what is old,

    softmax over moments of
        -(s1 own path + s2 own newest values + s3 those before + s4 paths of all channels + a age).

The penalties s and a are adjusted online by gradients through the softmax. What is kept is in
standard deviations, in eight bits: what is smaller is noise here.

References:
    Lorenz, Atmospheric predictability as revealed by naturally occurring analogues, 1969: there
    the analogue is the forecast, here it corrects one. Vaswani et al. 2017 for the softmax.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import order, packed, ring

SEASONS, LONGEST = 160, 4096  # moments whole seasons ago, at a memory of so many samples
FEWEST = 8  # at the least
VALUES, NEWEST = 12, 3  # [samples] newest values in a key, and those with a penalty of their own
POINTS = 14  # steps of the horizon in a key, at most
FULL = 4096  # [samples] the age that the penalty on age is given for
FIRST_SHARPNESS, FIRST_AGE = (1.6, 0.2, 0.6, 1.6), 0.2
SHOWN = 5  # moments that are named as an explanation
LARGEST = 1e4  # [standard deviations] in a key


class Params(NamedTuple):
    """What gradients adjust."""

    sharpness: Float[Array, " kinds"]  # log of the penalty on each kind of distance [1 / variance]
    age: Float[Array, ""]  # log of the penalty on `FULL` samples of age


class State(NamedTuple):
    """What is remembered of one stream."""

    keys: ring.Ring  # packed: (channels, points + VALUES) [standard deviations]
    errors: ring.Ring  # packed: (channels, horizon) that followed [standard deviations]


class Candidates(NamedTuple):
    """Moments that may speak."""

    lag: Int[Array, " moments"]  # [samples]; at least 1
    may: Float[Array, " moments"]  # 1, or 0 where nothing is known of what followed


PARAMETERS = len(FIRST_SHARPNESS) + 1


def init_params() -> Params:
    """The penalties before any learning."""
    return Params(
        *(jax.device_put(np.log(np.array(x, np.float32))) for x in (FIRST_SHARPNESS, FIRST_AGE))
    )


def points(horizon: int) -> np.ndarray:
    """The steps of a path that are compared, from 0: all of a short one, fewer further out."""
    return np.unique(np.geomspace(1, horizon, POINTS).round().astype(int)) - 1


def init(memory: int, horizon: int, channels: int) -> State:
    """An empty memory of `memory` moments."""
    size = len(points(horizon)) + VALUES
    return State(
        packed.init(memory, channels, size),
        packed.init(memory, channels, horizon),
    )


def remember(
    state: State,
    count: Int[Array, ""],
    path: Float[Array, "horizon channels"],
    newest: Float[Array, "values channels"],
    errors: Float[Array, "horizon channels"],
) -> tuple[State, Float[Array, "channels numbers"]]:
    """Write the key of now, and the errors after the moment whose last one has become known.

    Args:
        state: The memory.
        count: Number of the newest sample.
        path: What the trunk foresees, less the level [standard deviations].
        newest: The newest `VALUES` values, less the level [standard deviations].
        errors: What it got wrong after the moment `horizon` samples ago, 0 where not measured.

    Returns:
        The memory, and the key.
    """
    key = jnp.concatenate((path[points(path.shape[0])], newest)).T
    key = jnp.clip(key, -LARGEST, LARGEST)
    keys = packed.push(state.keys, count, key)
    return State(keys, packed.push(state.errors, count - path.shape[0], errors.T)), key


def candidates(
    state: State,
    count: Int[Array, ""],
    season: Int[Array, ""],
    near: Int[Array, " moments"],
    memory: int,
) -> Candidates:
    """Pick the moments to ask.

    Args:
        state: The memory.
        count: Number of the newest sample.
        season: [samples], at least 1.
        near: Lags of other moments that may be alike [samples]; 0 for none.
        memory: How many moments a level attends to, static; it looks as many seasons back.
    """
    horizon = packed.size(state.errors)
    # Nearest at several scales, a moment still speaks once.
    near = jnp.where(jnp.tril(near[:, None] == near, -1).any(axis=1), 0, near)
    seasons = max(SEASONS * memory // LONGEST, FEWEST)
    lag = jnp.concatenate((season * jnp.arange(1, seasons + 1), near))
    reach = jnp.minimum(count, state.keys.length - 1)
    may = (lag >= horizon) & (lag <= reach)
    return Candidates(jnp.maximum(lag, 1), may.astype(jnp.float32))


def attend(
    params: Params,
    state: State,
    count: Int[Array, ""],
    key: Float[Array, "channels numbers"],
    among: Candidates,
) -> tuple[Float[Array, "parameters moments channels"], Float[Array, "rows horizon channels"]]:
    """Recall what the trunk got wrong after the moments that are like now.

    Args:
        params: The penalties.
        state: The memory, with now in it.
        count: Number of the newest sample.
        key: Of now [standard deviations].
        among: The moments to ask.

    Returns:
        The weights, then for each parameter p how a weight moves with it: w times the derivative
        of the logit in p. And the correction [standard deviations], then its derivative in each
        parameter by softmax's own rule: what is recalled with that row of weights, less the
        row's sum times the correction.
    """
    keys = packed.read(state.keys, count - among.lag)
    apart = (keys - key) ** 2  # (moments, channels, numbers)
    own = jnp.mean(apart[..., :-VALUES], axis=2)
    kinds = jnp.stack(
        (
            own,
            jnp.mean(apart[..., -NEWEST:], axis=2),
            jnp.mean(apart[..., -VALUES:-NEWEST], axis=2),
            jnp.broadcast_to(jnp.mean(own, axis=1, keepdims=True), own.shape),
        )
    )
    old = jnp.broadcast_to(jnp.exp(params.age) * among.lag[:, None] / FULL, own.shape)
    far = jnp.exp(params.sharpness)[:, None, None] * kinds
    may = among.may[:, None] > 0
    logit = jnp.where(may, -jnp.sum(far, axis=0) - old, -jnp.inf)
    highest = jnp.max(logit, axis=0)
    raised = jnp.exp(logit - jnp.where(jnp.isfinite(highest), highest, 0.0))
    weight = raised / jnp.maximum(jnp.sum(raised, axis=0), 1e-30)
    rows = weight * jnp.concatenate(
        (jnp.ones((1, *weight.shape)), jnp.where(may, -far, 0.0), -old[None])
    )
    shares = rows * packed.units(state.errors, count - among.lag)

    def add(n: Array, total: Array) -> Array:
        errors = packed.numbers(state.errors, count - among.lag[n])  # (channels, horizon)
        return total + shares[:, n, :, None] * errors

    # Moment by moment, along the horizon: long ones take a third of the time of a product so.
    shape = (rows.shape[0], *own.shape[1:], packed.size(state.errors))
    out = lax.fori_loop(0, len(among.lag), add, jnp.zeros(shape)).swapaxes(1, 2)
    total = jnp.sum(rows[1:], axis=1)[:, None]
    return rows, jnp.concatenate((out[:1], out[1:] - total * out[0]))


def shown(
    weight: Float[Array, "moments channels"], among: Candidates
) -> tuple[Int[Array, " shown"], Float[Array, " shown"]]:
    """The lags of the moments that spoke most, over all channels, and their weights."""
    less, at = order.smallest(-jnp.mean(weight, axis=1), SHOWN)
    return jnp.where(less < 0, among.lag[at], 0), -less
