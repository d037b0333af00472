"""Rings of rows in eight bits: whole numbers, and beside each row's last axis their unit.

The unit is a power of two in eighths, the least at which the largest number is at most `MOST`; so
what is read is off by a 230th of the largest at most, and by more where that is below 0.002.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adaptive import ring

MOST = 127  # of a whole number
EIGHTHS = 8.0  # steps of the unit in a doubling
NOTHING = -128  # the unit of zeros


def init(rows: int, *shape: int) -> ring.Ring:
    """An empty one of one stream, all zero, that holds at least `rows` rows of `shape`."""
    *lead, size = shape
    return ring.init(rows, *lead, size + 1, copies=1, dtype=jnp.int8)


def size(packed: ring.Ring) -> int:
    """How many numbers the last axis has."""
    return packed.rows.shape[-1] - 1


def push(packed: ring.Ring, count: Int[Array, ""], new: Float[Array, "*shape"]) -> ring.Ring:
    """Write the row of sample number `count`; its numbers may not exceed 7e6."""
    most = jnp.max(jnp.abs(new), axis=-1, keepdims=True)
    unit = jnp.maximum(jnp.ceil(EIGHTHS * jnp.log2(most / MOST)), NOTHING)
    numbers = jnp.clip(jnp.round(new * jnp.exp2(-unit / EIGHTHS)), -MOST, MOST)
    return ring.push(packed, count, jnp.concatenate((numbers, unit), axis=-1))


def numbers(packed: ring.Ring, count: Int[Array, "*n"]) -> Float[Array, "..."]:
    """Read the whole numbers of some samples: [*n, *shape]."""
    return ring.read(packed, count)[..., :-1].astype(jnp.float32)


def units(packed: ring.Ring, count: Int[Array, "*n"]) -> Float[Array, "..."]:
    """Read their units: [*n, *shape without its last axis]."""
    return jnp.exp2(ring.read(packed, count)[..., -1].astype(jnp.float32) / EIGHTHS)


def read(packed: ring.Ring, count: Int[Array, "*n"]) -> Float[Array, "..."]:
    """Read the rows of some samples: [*n, *shape]."""
    return numbers(packed, count) * units(packed, count)[..., None]
