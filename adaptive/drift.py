"""Whether the stream has changed: then what was learned of it counts less.

The newest errors, relative to the usual ones, are summed as far as they exceed what chance brings;
when the sum exceeds a threshold the stream is taken to have changed. What runs through a season
changes nothing, so a longer season takes a larger sum. After a change losses, gains and the fastest
forecaster forget as if they had begun just then.

References:
    Page, Continuous inspection schemes, 1954; Hinkley 1971. Fortescue, Kershenbaum & Ydstie,
    Implementation of self-tuning regulators with variable forgetting factors, 1981.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MOST = 9.0  # usual squared errors that one sample counts for
SLACK = 0.5  # relative to the usual squared error: less is no change
THRESHOLD, A_SEASON = 40.0, 1.0  # of the sum, and more for each sample of a season
FIRST = 300  # [samples] before anything is a change
FRESH = 30  # [samples] that what is averaged anew begins with
NEVER = 1 << 24  # [samples] since a change, where there was none


class State(NamedTuple):
    """What is known of changes of one stream."""

    sum: Float[Array, ""]
    since: Int[Array, ""]  # [samples] since the newest change, and `FRESH`


def init() -> State:
    """No change so far."""
    return State(jnp.float32(0.0), jnp.int32(NEVER))


def watch(
    state: State,
    count: Int[Array, ""],
    error: Float[Array, " channels"],
    usual: Float[Array, " channels"],
    season: Int[Array, ""],
) -> State:
    """Take in the errors of the newest sample.

    Args:
        state: What was known.
        count: Number of the sample.
        error: Squared; 0 where not measured.
        usual: What it is on average, in the same unit.
        season: [samples], at least 1.
    """
    relative = jnp.mean(jnp.minimum(error / (usual + 1e-12), MOST))
    total = jnp.where(count < FIRST, 0.0, jnp.maximum(state.sum + relative - 1.0 - SLACK, 0.0))
    changed = total > THRESHOLD + A_SEASON * season
    since = jnp.where(changed, FRESH, jnp.minimum(state.since + 1, NEVER))
    return State(jnp.where(changed, 0.0, total), since)


def kept(state: State, memory: Float[Array, ""], fresh: int = 0) -> Float[Array, ""]:
    """What is left of a discounted sum after one more sample, as a share.

    A sum over `memory` samples becomes one over `FRESH + fresh` with a change; then it lasts longer
    with every sample, until it lasts as long as before.
    """
    lasts = jnp.minimum(memory, state.since + fresh)
    return jnp.where(state.since == FRESH, lasts / memory, 1.0 - 1.0 / lasts)
