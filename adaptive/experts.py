"""Linear forecasters that learn online, and their mixing: the trunk that attention corrects.

Five experts forecast every channel at every step of the horizon: persistence, seasonal
persistence, two recursive-least-squares (RLS) forecasters shared by all channels with a long and a
short memory, and one RLS forecaster for each channel of its own. All see differences to the newest
value in units of the running standard deviation, so none depends on level or scale. How far back
the first looks grows with the horizon.

Feedback is delayed by nature: step h of a forecast is judged h samples later. RLS is exact under
that delay and uses every step as soon as its truth is there: the gain of a regressor depends on
regressors alone, so it is computed when the regressor is seen, kept in a ring, and applied to the
weights of step h when that step's truth arrives.

References:
    Haykin, Adaptive Filter Theory, 4th ed., 2002, ch. 9 (RLS with forgetting).
    Cesa-Bianchi & Lugosi, Prediction, Learning, and Games, 2006, ch. 2 (exponential weights);
    the losses are discounted and scaled by their mean, so that no learning rate has a unit.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Int

from adaptive import ring
from adaptive.settings import EXPERTS

LEAST_LAGS, LAGS_A_STEP, MOST_LAGS = 96, 4, 336  # [samples] that the long memory looks back
CLIP = 10.0  # regressors and targets [standard deviations]: one absurd sample moves little
COVARIANCE_CAP = 100.0  # mean of the diagonal; without excitation forgetting would blow it up
JITTER = 1e-5  # of the inner matrix, relative: float32 must not make it indefinite
SHARPNESS = 2.0  # of the exponential weights
AS_NEAR, NEAR = 1.1, 0.01  # relative, [variances]: how far two averages differ by chance


class Regression(NamedTuple):
    """Groups of RLS forecasters; the rows of a group share their weights."""

    covariance: Float[Array, "groups lags lags"]
    weights: Float[Array, "groups lags horizon"]
    pairs: ring.Ring | ring.View  # (groups, 2, rows, lags) regressors and gains to be matured


class Family(NamedTuple):
    """What is the same for all regressions of a kind."""

    lags: int  # [samples]
    forgetting: float
    shared: bool  # one regression for all channels, or one for each


State = tuple[Regression, ...]  # what the trunk remembers of one stream, one for each family


def families(horizon: int) -> tuple[Family, ...]:
    """The regressions, in the order of `EXPERTS`; the first has the most lags."""
    reach = min(max(LEAST_LAGS, LAGS_A_STEP * horizon), MOST_LAGS)
    return (
        Family(reach, 0.99995, shared=True),
        Family(LEAST_LAGS, 0.998, shared=True),
        Family(24, 0.9995, shared=False),
    )


def regression(groups: int, rows: int, lags: int, horizon: int) -> Regression:
    """A regression that has seen nothing and forecasts no change."""
    return Regression(
        jnp.tile(jnp.eye(lags, dtype=jnp.float32), (groups, 1, 1)),
        jnp.zeros((groups, lags, horizon), jnp.float32),
        ring.init(horizon + 1, groups, 2, rows, lags),
    )


def init(channels: int, horizon: int) -> State:
    """A trunk that has seen nothing."""
    return tuple(
        regression(1, channels, family.lags, horizon)
        if family.shared
        else regression(channels, 1, family.lags, horizon)
        for family in families(horizon)
    )


def gain(
    covariance: Float[Array, "lags lags"],
    regressors: Float[Array, "rows lags"],
    forgetting: Float[Array, ""],
) -> tuple[Float[Array, "lags lags"], Float[Array, "rows lags"]]:
    """Take in the regressors of one moment.

        S = lambda I + X P X',   K = S^-1 X P,   P <- (P - (X P)' K) / lambda

    Args:
        covariance: P, inverse of the discounted sum of x x'.
        regressors: X, one row for each channel that shares the weights.
        forgetting: lambda, for one moment.

    Returns:
        The new covariance and the gains K.

    References:
        Haykin 2002, table 9.1, in its block form. P is made symmetric again at each step and
        does not grow beyond `COVARIANCE_CAP`; should rounding make it
        unsound all the same, it starts anew and this moment teaches nothing.
    """
    rows, lags = regressors.shape
    capped = jnp.trace(covariance) / lags > COVARIANCE_CAP
    forgetting = jnp.where(capped, 1.0, forgetting)
    projected = regressors @ covariance  # X P: (rows, lags)
    inner = projected @ regressors.T
    noise = forgetting + JITTER * jnp.trace(inner) / rows
    inner = inner + noise * jnp.eye(rows)
    # Of the small inverse: LAPACK would take threads to solve for so many columns, and spin.
    inverse = 1 / inner if rows == 1 else cho_solve(cho_factor(inner), jnp.eye(rows))
    gains = inverse @ projected
    covariance = (covariance - projected.T @ gains) / forgetting
    covariance = 0.5 * (covariance + covariance.T)
    sound = jnp.isfinite(gains).all() & (jnp.min(jnp.diagonal(covariance)) > 0)
    covariance = jnp.where(sound, covariance, jnp.eye(lags))
    return covariance, jnp.where(sound, gains, 0.0)


def learn(
    state: Regression,
    count: Int[Array, ""],
    change: Float[Array, "horizon groups rows"],
    seen: Float[Array, "horizon groups rows"],
) -> Regression:
    """Correct the weights of every step by the truth that has just arrived.

    Args:
        state: The regression.
        count: Number of the sample that has just arrived.
        change: By row h - 1, the newest value minus the one h samples ago [standard deviations].
        seen: 1 where both were measured, else 0.

    Returns:
        The regression with new weights.
    """
    horizon = change.shape[0]
    # Oldest first, so of the last step first: turning the small arrays is cheaper than the pairs.
    pairs = ring.last(state.pairs, count - 1, horizon)
    regressors, gains = pairs[:, :, 0], pairs[:, :, 1]  # (horizon, groups, rows, lags)
    foreseen = jnp.einsum("hgrl,glh->hgr", regressors, state.weights[..., ::-1])
    error = (change[::-1] - foreseen) * seen[::-1]
    step = jnp.einsum("hgrl,hgr->glh", gains, error)[..., ::-1]
    return state._replace(weights=state.weights + step)


def observe(
    state: Regression,
    count: Int[Array, ""],
    regressors: Float[Array, "groups rows lags"],
    forgetting: float,
) -> Regression:
    """Take in the regressors of the newest moment, whose truth is yet to come."""
    one = partial(gain, forgetting=jnp.float32(forgetting))
    covariance, gains = jax.vmap(one)(state.covariance, regressors)
    pairs = ring.push(state.pairs, count, jnp.stack((regressors, gains), axis=1))
    return state._replace(covariance=covariance, pairs=pairs)


def regressors_of(
    window: Float[Array, "most channels"], scale: Float[Array, " channels"], family: Family
) -> Float[Array, "groups rows lags"]:
    """Make the regressors of a family from the newest values, oldest first."""
    change = jnp.clip((window[-family.lags :] - window[-1]) / scale, -CLIP, CLIP)
    # The newest difference is zero by definition; its place holds the bias.
    change = change.at[-1].set(1.0).T  # (channels, lags)
    return change[None] if family.shared else change[:, None]


def forecast(
    state: State,
    window: Float[Array, "lags channels"],
    season: Float[Array, "horizon channels"],
    scale: Float[Array, " channels"],
) -> Float[Array, "experts horizon channels"]:
    """Forecast with every expert.

    Args:
        state: The trunk.
        window: The newest values, as many as the first family has lags, oldest first.
        season: The values one season before each step of the horizon.
        scale: The running standard deviation.

    Returns:
        The forecasts, in the units of the values, in the order of `EXPERTS`.
    """
    horizon, channels = season.shape
    changes = [jnp.zeros_like(season), season - window[-1]]
    for one, family in zip(state, families(horizon), strict=True):
        rows = regressors_of(window, scale, family)
        change = jnp.einsum("grl,glh->hgr", rows, one.weights)
        changes.append(change.reshape(horizon, channels) * scale)
    return jnp.stack(changes) + window[-1]


def weights(loss: Float[Array, "experts horizon channels"]) -> Float[Array, "..."]:
    """Weigh the experts of every step and channel by their discounted losses; they sum to 1."""
    mean = jnp.mean(loss, axis=0) + 1e-12
    worse = (loss - jnp.min(loss, axis=0)) / mean
    return jax.nn.softmax(-SHARPNESS * len(EXPERTS) * worse, axis=0)


def season_of(
    values: ring.Ring | ring.View,
    count: Int[Array, ""],
    lag: Int[Array, ""],
    horizon: int,
) -> Float[Array, "horizon channels"]:
    """Read the values one season (or as few whole seasons as needed) before each step.

    Args:
        values: All values, a row (channels,) for each sample.
        count: Number of the newest sample.
        lag: The season [samples], at least 1.
        horizon: How many steps.

    Returns:
        For step h the value `lag * ceil(h / lag) - h` samples ago.
    """
    steps = jnp.arange(1, horizon + 1)
    ago = lag * (-(-steps // lag)) - steps
    return values.rows[values.stream, 0, ring.row(values, count - ago)]


def step(
    state: State,
    count: Int[Array, ""],
    window: Float[Array, "lags channels"],
    scale: Float[Array, " channels"],
    past: Float[Array, "horizon channels"],
    known: Float[Array, "horizon channels"],
) -> State:
    """Take in the regressors of the newest sample, then learn from its values.

    In that order a ring is written before it is read, which lets XLA work in place.

    Args:
        state: The trunk.
        count: Number of the newest sample.
        window: The newest values, as many as the first family has lags, oldest first.
        scale: The running standard deviation.
        past: By row h - 1 the value h samples ago.
        known: 1 where the newest value and the one h samples ago were both measured.

    Returns:
        The trunk.
    """
    change = jnp.clip((window[-1] - past) / scale, -CLIP, CLIP)
    horizon = change.shape[0]
    moved = []
    for one, family in zip(state, families(horizon), strict=True):
        rows = regressors_of(window, scale, family)
        one = observe(one, count, rows, family.forgetting)
        of_rows = (horizon, *rows.shape[:2])
        moved.append(learn(one, count, change.reshape(of_rows), known.reshape(of_rows)))
    return tuple(moved)


def seasonal_lag(distance: Float[Array, " lags"], known: Float[Array, " lags"]) -> Int[Array, ""]:
    """Find the season: the lag of least distance beyond the first that is uncorrelated.

    By chance a multiple of the season is often nearer than the season itself. So the shortest lag
    that the least one is a multiple of is taken, if it is as near but for chance.

    Args:
        distance: Slowly averaged squared distance to the value each lag ago, for lags
            `len(distance)` down to 1 [variances]; about 2 (1 - autocorrelation).
        known: How much of the average is there, in [0, 1].

    Returns:
        The lag [samples]; 0 where no season shows.
    """
    lags = distance.shape[0]
    by_lag, there = distance[::-1], known[::-1] > 0.5
    by_lag = jnp.where(there, by_lag, 0.0)
    beyond = (lax.cummax(by_lag) > 1.0) & there
    candidate = jnp.where(beyond, by_lag, jnp.inf)
    least = jnp.min(candidate)
    lag = jnp.arange(1, lags + 1)
    first = jnp.min(jnp.where(candidate <= least, lag, lags))
    times = (2 * first + lag) // (2 * lag)  # first / lag, rounded
    near = candidate <= AS_NEAR * least + NEAR
    whole = (2 * jnp.abs(first - times * lag) <= times) & (times > 0)
    first = jnp.min(jnp.where(whole & near, lag, first))
    return jnp.where(jnp.isfinite(least) & (least < 1.0), first, 0)
