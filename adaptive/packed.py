"""Rings of rows in eight bits: whole numbers, and their unit for each row's last axis.

The unit is the largest number over 127, so what is read is off by about a 254th of the largest;
by more where that is below 0.01, as the unit is kept in half precision.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adaptive import ring

MOST = 127  # of a whole number


class Packed(NamedTuple):
    """The ring of one stream or of a bank."""

    numbers: ring.Ring  # *shape, eight bits
    unit: ring.Ring  # *shape without its last axis, half precision


def init(rows: int, *shape: int) -> Packed:
    """An empty one of one stream, all zero, that holds at least `rows` rows of `shape`."""
    return Packed(
        ring.init(rows, *shape, copies=1, dtype=jnp.int8),
        ring.init(rows, *shape[:-1], copies=1, dtype=jnp.float16),
    )


def push(packed: Packed, count: Int[Array, ""], new: Float[Array, "*shape"]) -> Packed:
    """Write the row of sample number `count`; its numbers may not exceed 8e6."""
    unit = (jnp.max(jnp.abs(new), axis=-1) / MOST).astype(jnp.float16)
    step = unit.astype(jnp.float32)[..., None]
    numbers = jnp.where(step > 0, jnp.clip(jnp.round(new / step), -MOST, MOST), 0.0)
    return Packed(ring.push(packed.numbers, count, numbers), ring.push(packed.unit, count, unit))


def read(packed: Packed, count: Int[Array, "*n"]) -> Float[Array, "..."]:
    """Read the rows of some samples: [*n, *shape]."""
    numbers, unit = (ring.read(one, count).astype(jnp.float32) for one in packed)
    return numbers * unit[..., None]
