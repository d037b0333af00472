"""Ring buffers whose newest rows lie side by side: each row is written twice, a length apart.

A slice of the newest rows is then contiguous whatever the write position, so no gather and no
roll is needed. Lengths are powers of two, so that a counter may wrap (see `advance`) without
moving a row. A `Ring` holds a buffer for every stream of a bank; a `View` is the one of a stream,
read and written in place: a bank is never copied for one sample. To keep it so, write a ring
before reading it within a step: a read of what was there before makes XLA copy all of it.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

WRAP = 1 << 29  # samples; every ring length divides it


def length_for(rows: int) -> int:
    """The smallest length of a ring that holds `rows` rows."""
    return 1 << max(rows - 1, 1).bit_length()


class Ring(NamedTuple):
    """The buffers of all streams."""

    rows: Float[Array, "streams copies length *shape"]

    @property
    def stream(self) -> int:
        """The only stream there is: the ring of a single stream is its own view."""
        if self.rows.shape[0] != 1:
            raise ValueError(f"a ring of {self.rows.shape[0]} streams needs a View of one of them")
        return 0

    @property
    def length(self) -> int:
        """How many rows there are for each stream."""
        return self.rows.shape[2]


class View(NamedTuple):
    """The buffer of one stream among all."""

    rows: Float[Array, "streams copies length *shape"]
    stream: Int[Array, ""]

    @property
    def length(self) -> int:
        """How many rows there are."""
        return self.rows.shape[2]


Buffer = TypeVar("Buffer", bound=Ring | View)
Tree = TypeVar("Tree")  # of arrays and rings


def init(rows: int, *shape: int, copies: int = 2, dtype: DTypeLike = jnp.float32) -> Ring:
    """An empty ring of one stream, all zero, that holds at least `rows` rows of `shape`.

    One copy of each row is enough where single rows are read, not slices of the newest.
    """
    return Ring(jnp.zeros((1, copies, length_for(rows), *shape), dtype))


def row(ring: Ring | View, count: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Where the row of sample number `count` is."""
    return count & (ring.length - 1)


def push(ring: Buffer, count: Int[Array, ""], new: Float[Array, "*shape"]) -> Buffer:
    """Write the row of sample number `count`, in one update."""
    both = jnp.broadcast_to(new, (1, ring.rows.shape[1], 1, *new.shape)).astype(ring.rows.dtype)
    start = (ring.stream, 0, row(ring, count), *(0 for _ in new.shape))
    return ring._replace(rows=lax.dynamic_update_slice(ring.rows, both, start))


def last(ring: Ring | View, count: Int[Array, ""], rows: int) -> Float[Array, "rows *shape"]:
    """Read the `rows` newest rows up to sample number `count`, oldest first."""
    streams, copies, length, *shape = ring.rows.shape
    if copies < 2:
        raise ValueError("a ring of one copy has no slices of its newest rows")
    if rows > length:
        raise ValueError(f"the ring holds {length} rows, {rows} were asked for")
    flat = ring.rows.reshape(streams, 2 * length, *shape)
    start = (ring.stream, row(ring, count) + length - rows + 1, *(0 for _ in shape))
    return lax.dynamic_slice(flat, start, (1, rows, *shape))[0]


def advance(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of the next sample. It wraps, so that int32 lasts for ever at any rate."""
    return jnp.where(count >= 2 * WRAP - 1, count + 1 - WRAP, count + 1)


def is_ring(leaf: object) -> bool:
    """Whether a part of a state is a ring, of all streams or of one."""
    return isinstance(leaf, Ring | View)


def of_stream(bank: Tree, stream: Int[Array, ""]) -> Tree:
    """The state of one stream of a bank of states; its rings are views, not copies."""
    return jax.tree.map(
        lambda a: View(a.rows, stream) if is_ring(a) else a[stream], bank, is_leaf=is_ring
    )


def with_stream(bank: Tree, stream: Int[Array, ""], state: Tree) -> Tree:
    """The bank with a new state of one stream."""
    return jax.tree.map(
        lambda new, old: (
            Ring(new.rows) if is_ring(new) else lax.dynamic_update_index_in_dim(old, new, stream, 0)
        ),
        state,
        bank,
        is_leaf=is_ring,
    )
