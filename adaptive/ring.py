"""Ring buffers whose newest rows lie side by side: each row is written twice, a length apart.

A slice of the newest rows is then contiguous whatever the write position, so no gather and no
roll is needed. Lengths are powers of two, so that a counter may wrap (see `advance`) without
moving a row. A ring of a bank holds a buffer for every stream, and of one stream it is a view, read
and written in place: a bank is never copied for one sample. To keep it so, write a ring before
reading it within a step: a read of what was there before makes XLA copy all of it.

Rows lie one after the other, or by channel: where all rows are compared with one, all that is
compared in a channel then lies side by side, which is several times as fast for few channels.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

WRAP = 1 << 29  # samples; every ring length divides it

Tree = TypeVar("Tree")  # of arrays and rings


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "stream"],
    meta_fields=["by_channel"],
)
@dataclass(frozen=True)
class Ring:
    """The buffers of all streams, or among them that of one."""

    rows: Any  # an array (streams, copies, length, *shape), or what a tree of such arrays holds
    stream: Any = None  # which one; None for all
    by_channel: bool = False  # then rows is (streams, channels, copies, length)

    @property
    def length(self) -> int:
        """How many rows there are for each stream."""
        return self.rows.shape[3 if self.by_channel else 2]

    @property
    def copies(self) -> int:
        """How often each row is written."""
        return self.rows.shape[2 if self.by_channel else 1]

    @property
    def which(self) -> Int[Array, ""] | int:
        """The stream that is read and written."""
        if self.stream is None and self.rows.shape[0] != 1:
            raise ValueError(f"a ring of {self.rows.shape[0]} streams needs a view of one of them")
        return 0 if self.stream is None else self.stream


def length_for(rows: int) -> int:
    """The smallest length of a ring that holds `rows` rows."""
    return 1 << max(rows - 1, 1).bit_length()


def init(rows: int, *shape: int, copies: int = 2, dtype: DTypeLike = jnp.float32) -> Ring:
    """An empty ring of one stream, all zero, that holds at least `rows` rows of `shape`.

    One copy of each row is enough where single rows are read, not slices of the newest.
    """
    return Ring(jnp.zeros((1, copies, length_for(rows), *shape), dtype))


def init_by_channel(rows: int, channels: int) -> Ring:
    """An empty ring of one stream by channel, all NaN."""
    empty = jnp.full((1, channels, 2, length_for(rows)), jnp.nan, jnp.float32)
    return Ring(empty, by_channel=True)


def row(ring: Ring, count: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Where the row of sample number `count` is."""
    return count & (ring.length - 1)


def push(ring: Ring, count: Int[Array, ""], new: Float[Array, "*shape"]) -> Ring:
    """Write the row of sample number `count`, in one update."""
    if ring.by_channel:
        rows = jnp.broadcast_to(new[:, None, None], (1, len(new), ring.copies, 1))
        start = (ring.which, 0, 0, row(ring, count))
    else:
        rows = jnp.broadcast_to(new, (1, ring.copies, 1, *new.shape))
        start = (ring.which, 0, row(ring, count), *(0 for _ in new.shape))
    return replace(
        ring, rows=lax.dynamic_update_slice(ring.rows, rows.astype(ring.rows.dtype), start)
    )


def read(ring: Ring, count: Int[Array, "*n"]) -> Array:
    """Read the rows of samples by their numbers: (*n, *shape)."""
    at = row(ring, count)
    # By channel, too, the numbers of the samples come first.
    rows = (
        ring.rows.at[ring.which, :, 0, at] if ring.by_channel else ring.rows.at[ring.which, 0, at]
    )
    return rows.get(mode="promise_in_bounds")


def last(ring: Ring, count: Int[Array, ""], rows: int) -> Float[Array, "..."]:
    """Read the `rows` newest rows up to sample number `count`, oldest first.

    Returns:
        (rows, *shape); by channel (channels, rows).
    """
    if ring.copies < 2:
        raise ValueError("a ring of one copy has no slices of its newest rows")
    if rows > ring.length:
        raise ValueError(f"the ring holds {ring.length} rows, {rows} were asked for")
    start = row(ring, count) + ring.length - rows + 1
    if ring.by_channel:
        streams, channels, copies, length = ring.rows.shape
        flat = ring.rows.reshape(streams, channels, copies * length)
        return lax.dynamic_slice(flat, (ring.which, 0, start), (1, channels, rows))[0]
    streams, copies, length, *shape = ring.rows.shape
    flat = ring.rows.reshape(streams, copies * length, *shape)
    return lax.dynamic_slice(flat, (ring.which, start, *(0 for _ in shape)), (1, rows, *shape))[0]


def advance(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of the next sample. It wraps, so that int32 lasts for ever at any rate."""
    return jnp.where(count >= 2 * WRAP - 1, count + 1 - WRAP, count + 1)


def is_ring(leaf: object) -> bool:
    """Whether a part of a state is a ring."""
    return isinstance(leaf, Ring)


def of_stream(bank: Tree, stream: Int[Array, ""]) -> Tree:
    """The state of one stream of a bank of states; its rings are views, not copies."""
    return jax.tree.map(
        lambda a: replace(a, stream=stream) if is_ring(a) else a[stream], bank, is_leaf=is_ring
    )


def with_stream(bank: Tree, stream: Int[Array, ""], state: Tree) -> Tree:
    """The bank with a new state of one stream."""
    return jax.tree.map(
        lambda new, old: (
            replace(new, stream=None)
            if is_ring(new)
            else lax.dynamic_update_index_in_dim(old, new, stream, 0)
        ),
        state,
        bank,
        is_leaf=is_ring,
    )
