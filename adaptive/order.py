"""The smallest of some numbers, and their quantiles: what XLA would sort all of them for.

On a CPU a sort, or a top-k, is a call out of the compiled program that costs more than the rest of
a small step; and a program with such a call cannot become one kernel (`runtime.one_kernel`).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

GROUP = 16  # numbers that are looked through together
HALVINGS = 24  # of the range of values, until a quantile is known


def first_least(x: Float[Array, " n"]) -> Int[Array, ""]:
    """Where the least number is, the first of equal ones.

    XLA's own has buffers for each step of its comparison, all of which every call allocates.
    """
    return jnp.min(jnp.where(x == jnp.min(x), jnp.arange(len(x)), len(x) - 1))


def smallest(x: Float[Array, " n"], many: int) -> tuple[Float[Array, " many"], Int[Array, " many"]]:
    """Find the smallest numbers and where they are, smallest first; of equal ones the first.

    Taken one by one; only the least of each group is looked at anew.
    """
    fill = -len(x) % GROUP
    x = jnp.pad(x, (0, fill), constant_values=jnp.inf).reshape(-1, GROUP)

    def take(k: Array, taken: tuple[Array, ...]) -> tuple[Array, ...]:
        x, least, values, places = taken
        group = first_least(least)
        here = lax.dynamic_index_in_dim(x, group, 0, keepdims=False)
        place = first_least(here)
        values = lax.dynamic_update_index_in_dim(values, least[group], k, 0)
        places = lax.dynamic_update_index_in_dim(places, GROUP * group + place, k, 0)
        rest = jnp.where(jnp.arange(GROUP) == place, jnp.inf, here)
        x = lax.dynamic_update_index_in_dim(x, rest, group, 0)
        least = lax.dynamic_update_index_in_dim(least, jnp.min(rest), group, 0)
        return x, least, values, places

    values, places = jnp.zeros(many, x.dtype), jnp.zeros(many, jnp.int32)
    return lax.fori_loop(0, many, take, (x, jnp.min(x, axis=1), values, places))[2:]


def quantile(x: Float[Array, " n"], share: float) -> Float[Array, ""]:
    """The number that stands where a share of the finite ones is smaller; infinite without any.

    Found by halving the range, so it is off by a part in 2^24 of that.
    """
    there = jnp.isfinite(x)
    many = jnp.sum(there)
    rank = jnp.round(share * (many - 1)) + 1
    low = jnp.min(jnp.where(there, x, jnp.inf))
    high = jnp.max(jnp.where(there, x, -jnp.inf))

    def halve(_: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = low + 0.5 * (high - low)
        enough = jnp.sum(x <= middle) >= rank  # nothing else is so small, NaN not either
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    _, high = lax.fori_loop(0, HALVINGS, halve, (low, high))
    return jnp.where(many > 0, high, jnp.inf)
