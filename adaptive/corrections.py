"""From all forecasts to the one that is served: how far each counts, learned on matured truth.

    corrected = trunk + gain_1 recall + gain_2 encoder
    served    = corrected + sum over parts of share (part - trunk)

Recall and encoder aim at what the trunk gets wrong; their gains lie in [0, 1], so one that does not
help is not used. The parts are the experts and recall. The trunk weighs experts by their losses
alone, which cannot know that two of them err alike, or that all of them move too little; shares
can, and may be negative. Both are discounted ridge regressions, step by step of the horizon, over
all channels. The ridge of the shares is large while few samples have matured, in whole horizons,
and a part counts no more than a usual error of the trunk: what is left is seen through much noise.

References:
    Bates & Granger, The combination of forecasts, 1969, for weights from the errors' covariance;
    Wolpert, Stacked generalization, 1992; Hoerl & Kennard, Ridge regression, 1970.
"""

# pyright: reportIncompatibleMethodOverride=false
# The count of a state hides the method of tuples, which nobody needs.

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from adaptive.settings import EXPERTS, KINDS

TRUNK, RECALL, ENCODER, CORRECTED = (
    KINDS.index(kind) for kind in ("trunk", "recall", "encoder", "corrected")
)
RIDGE = 0.02  # of the gains, against the variance of the residual
MOST = 4.0  # usual errors of the trunk that a correction counts for
PARTS = len(EXPERTS) + 1
PART_RIDGE, FEW = 0.1, 30.0  # of the shares; and for each horizon in the samples so far
LEAST = 1e-4  # [variances] of a part, in all samples


class State(NamedTuple):
    """Discounted sums over matured samples and their channels, by step of the horizon."""

    moments: Float[Array, "horizon 5"]  # of recall, encoder and residual, see `gains`
    inner: Float[Array, "horizon parts parts"]  # part times part
    cross: Float[Array, "horizon parts"]  # part times what `corrected` left
    count: Float[Array, " horizon"]  # samples


def init(horizon: int) -> State:
    """Nothing learned: the trunk is served."""
    return State(
        jnp.zeros((horizon, 5), jnp.float32),
        jnp.zeros((horizon, PARTS, PARTS), jnp.float32),
        jnp.zeros((horizon, PARTS), jnp.float32),
        jnp.zeros(horizon, jnp.float32),
    )


def learn(
    state: State,
    error: Float[Array, "kinds horizon channels"],
    known: Float[Array, "horizon channels"],
    loss: Float[Array, "kinds horizon channels"],
    kept: Float[Array, ""],
) -> State:
    """Take in the errors of the forecasts that have just matured.

    Args:
        state: What is known.
        error: Of each of `KINDS`, made h samples ago in row h - 1 [standard deviations], 0 where
            the truth was not measured.
        known: 1 where it was.
        loss: Discounted squared errors [variances].
        kept: Share of the earlier sums that is kept.
    """
    left = error[TRUNK]
    a, b = left - error[RECALL], left - error[ENCODER]  # the corrections, as cut
    pairs = ((a, a), (a, b), (b, b), (a, left), (b, left))
    moments = jnp.stack([jnp.sum(one * other, axis=1) for one, other in pairs], axis=1)
    parts = cut(left - jnp.concatenate((error[: len(EXPERTS)], error[RECALL][None])), loss)
    return State(
        kept * state.moments + moments,
        kept * state.inner + jnp.einsum("phc,qhc->hpq", parts, parts),
        kept * state.cross + jnp.einsum("phc,hc->hp", parts, error[CORRECTED]),
        kept * state.count + jnp.max(known, axis=1),
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


def shares(state: State) -> Float[Array, "horizon parts"]:
    """Solve for the shares of the parts."""
    steps = jnp.arange(1, len(state.count) + 1)
    ridge = PART_RIDGE + FEW * steps / jnp.maximum(state.count, 1.0)
    unit = jnp.eye(PARTS)
    inner = state.inner * (1 + ridge[:, None, None] * unit) + LEAST * unit
    # Gauss and Jordan's elimination; the ridge makes pivots needless. LAPACK takes longer.
    rows = jnp.concatenate((inner, state.cross[..., None]), axis=2)
    for k in range(PARTS):
        row = rows[:, k] / rows[:, k, k, None]
        rows = (rows - rows[:, :, k, None] * row[:, None]).at[:, k].set(row)
    return rows[..., -1]


def serve(
    state: State,
    loss: Float[Array, "kinds horizon channels"],
    ahead: Float[Array, "experts horizon channels"],
    by_recall: Float[Array, "horizon channels"],
    by_encoder: Float[Array, "horizon channels"],
) -> tuple[Float[Array, "horizon channels"], Float[Array, "horizon channels"]]:
    """Combine forecasts; all of them as differences to the trunk's [standard deviations].

    Args:
        state: What is known.
        loss: Discounted squared errors [variances].
        ahead: The experts'.
        by_recall: Recall's correction, bounded.
        by_encoder: The encoder's.

    Returns:
        What is `corrected`, and what is served.
    """
    gain = gains(state.moments)
    corrected = gain[:, :1] * by_recall + gain[:, 1:] * by_encoder
    parts = cut(jnp.concatenate((ahead, by_recall[None])), loss)
    return corrected, corrected + jnp.einsum("hp,phc->hc", shares(state), parts)


def counted(state: State) -> Float[Array, "horizon 2"]:
    """How much of recall's and of the encoder's correction is served, where neither is cut."""
    gain = gains(state.moments)
    return gain.at[:, 0].add(shares(state)[:, -1])


def bounded(correction: Float[Array, "..."], loss: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cut corrections [..., horizon, channels], or an outlier that is recalled would cost most."""
    return cut(correction, loss, MOST)


def cut(
    parts: Float[Array, "..."], loss: Float[Array, "..."], most: float = 1.0
) -> Float[Array, "..."]:
    """Cut at so many usual errors of the trunk."""
    limit = most * jnp.sqrt(loss[TRUNK])
    return jnp.clip(parts, -limit, limit)
