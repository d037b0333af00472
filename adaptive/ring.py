"""Ring buffers whose newest rows lie side by side: each row is written twice, a length apart.

A slice of the newest rows is then contiguous whatever the write position, so no gather and no
roll is needed. Lengths are powers of two, so that a counter may wrap (see `advance`) without
moving a row. A ring of a bank holds a buffer for every stream, and of one stream it is a view, read
and written in place: a bank is never copied for one sample. To keep it so, write a ring before
reading it within a step: a read of what was there before makes XLA copy all of it.

Rows lie one after the other, or by phase: those of every `PHASES`-th sample side by side, in each
channel. Where all rows are compared with one, the least of each `PHASES` neighbours is then found
by comparing rows of numbers with rows, which a processor does many at a time.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from adaptive.settings import PHASES

WRAP = 1 << 29  # samples; every ring length divides it

Tree = TypeVar("Tree")  # of arrays and rings


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "stream"], meta_fields=[])
@dataclass(frozen=True)
class View:
    """Arrays of all streams of a bank, or among them that of one, read and written in place."""

    rows: Any  # an array (streams, *shape), or what a tree of such arrays holds
    stream: Any = None  # which one; None for all

    @property
    def which(self) -> Int[Array, ""] | int:
        """The stream that is read and written."""
        if self.stream is None and self.rows.shape[0] != 1:
            raise ValueError(f"{self.rows.shape[0]} streams need a view of one of them")
        return 0 if self.stream is None else self.stream


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "stream"], meta_fields=["by_phase"])
@dataclass(frozen=True)
class Ring(View):
    """A ring buffer of each stream: rows is (streams, copies, length, *shape)."""

    by_phase: bool = False  # then rows is (streams, channels, PHASES, 2 length / PHASES)

    @property
    def length(self) -> int:
        """How many rows there are for each stream."""
        return PHASES * self.rows.shape[3] // 2 if self.by_phase else self.rows.shape[2]

    @property
    def copies(self) -> int:
        """How often each row is written."""
        return 2 if self.by_phase else self.rows.shape[1]


def length_for(rows: int) -> int:
    """The smallest length of a ring that holds `rows` rows."""
    return 1 << max(rows - 1, 1).bit_length()


def init(rows: int, *shape: int, copies: int = 2, dtype: DTypeLike = jnp.float32) -> Ring:
    """An empty ring of one stream, all zero, that holds at least `rows` rows of `shape`.

    One copy of each row is enough where single rows are read, not slices of the newest.
    """
    return Ring(jnp.zeros((1, copies, length_for(rows), *shape), dtype))


def init_by_phase(rows: int, channels: int) -> Ring:
    """An empty ring of one stream by phase, all NaN."""
    columns = max(length_for(rows) // PHASES, 1)
    return Ring(jnp.full((1, channels, PHASES, 2 * columns), jnp.nan, jnp.float32), by_phase=True)


def row(ring: Ring, count: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Where the row of sample number `count` is."""
    return count & (ring.length - 1)


def push(ring: Ring, count: Int[Array, ""], new: Float[Array, "*shape"]) -> Ring:
    """Write the row of sample number `count`."""
    at, rows = row(ring, count), ring.rows
    if ring.by_phase:
        # In two updates: with an axis for the copies what reads is ten times as slow.
        column = new.astype(rows.dtype)[None, :, None, None]
        for copy in (0, ring.length):
            start = (ring.which, 0, at % PHASES, (at + copy) // PHASES)
            rows = lax.dynamic_update_slice(rows, column, start)
        return replace(ring, rows=rows)
    copies = jnp.broadcast_to(new, (1, ring.copies, 1, *new.shape)).astype(rows.dtype)
    start = (ring.which, 0, at, *(0 for _ in new.shape))
    return replace(ring, rows=lax.dynamic_update_slice(rows, copies, start))


def read(ring: Ring, count: Int[Array, "*n"]) -> Array:
    """Read the rows of samples by their numbers: (*n, *shape)."""
    at = row(ring, count)
    if ring.by_phase:
        rows = ring.rows.at[ring.which, :, at % PHASES, at // PHASES]
    else:
        rows = ring.rows.at[ring.which, 0, at]
    return rows.get(mode="promise_in_bounds")


def last(ring: Ring, count: Int[Array, ""], rows: int) -> Float[Array, "rows *shape"]:
    """Read the `rows` newest rows up to sample number `count`, oldest first."""
    check(ring, rows)
    if ring.by_phase:
        return read(ring, count - jnp.arange(rows - 1, -1, -1))
    start = row(ring, count) + ring.length - rows + 1
    streams, copies, length, *shape = ring.rows.shape
    flat = ring.rows.reshape(streams, copies * length, *shape)
    return lax.dynamic_slice(flat, (ring.which, start, *(0 for _ in shape)), (1, rows, *shape))[0]


def last_by_phase(
    ring: Ring, count: Int[Array, ""], rows: int
) -> Float[Array, "channels phases columns"]:
    """Read the `rows` newest rows up to sample number `count`: j samples ago in phase j.

    Every further column to the left is `PHASES` samples older.
    """
    check(ring, rows)
    channels, columns = ring.rows.shape[1], rows // PHASES

    def copy(j: Array, out: Array) -> Array:
        at = row(ring, count - j)
        start = (ring.which, 0, at % PHASES, (at + ring.length - rows) // PHASES + 1)
        phase = lax.dynamic_slice(ring.rows, start, (1, channels, 1, columns))[0]
        return lax.dynamic_update_slice(out, phase, (0, j, 0))

    return lax.fori_loop(0, PHASES, copy, jnp.zeros((channels, PHASES, columns)))


def check(ring: Ring, rows: int) -> None:
    """Refuse to read more of a ring than there is.

    Raises:
        ValueError: The ring has no copies, or is shorter.
    """
    if ring.copies < 2:
        raise ValueError("a ring of one copy has no slices of its newest rows")
    if rows > ring.length:
        raise ValueError(f"the ring holds {ring.length} rows, {rows} were asked for")


def advance(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of the next sample. It wraps, so that int32 lasts for ever at any rate."""
    return jnp.where(count >= 2 * WRAP - 1, count + 1 - WRAP, count + 1)


def is_view(leaf: object) -> bool:
    """Whether a part of a state is a ring, or another view of a bank."""
    return isinstance(leaf, View)


def of_stream(bank: Tree, stream: Int[Array, ""]) -> Tree:
    """The state of one stream of a bank of states; its rings are not copied."""
    return jax.tree.map(
        lambda a: replace(a, stream=stream) if is_view(a) else a[stream], bank, is_leaf=is_view
    )


def with_stream(bank: Tree, stream: Int[Array, ""], state: Tree) -> Tree:
    """The bank with a new state of one stream."""
    return jax.tree.map(
        lambda new, old: (
            replace(new, stream=None)
            if is_view(new)
            else lax.dynamic_update_index_in_dim(old, new, stream, 0)
        ),
        state,
        bank,
        is_leaf=is_view,
    )
