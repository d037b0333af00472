"""The states of a bank's streams in few arrays: every array of a call costs microseconds.

What is large stays as it is; all that is small lies side by side, small rings among it, in one
array of real numbers and one of whole ones.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import ring
from adaptive.model import State

LARGE = 512  # numbers of one stream that an array of its own is worth


class Store(NamedTuple):
    """All streams of a bank; plain arrays, which a call takes in the least time."""

    apart: tuple[Array, ...]  # rows of rings, and arrays (streams, *shape)
    real: Float[Array, "streams real"]
    whole: Int[Array, "streams whole"]


class Part(NamedTuple):
    """Where one part of a state lies."""

    field: str  # of a store
    shape: tuple[int, ...]  # in one stream
    kind: ring.View | None = None  # without its rows


def place(leaf: Any) -> Part:
    """Say where a part of a bank belongs."""
    kind = replace(leaf, rows=None) if ring.is_view(leaf) else None
    rows = leaf.rows if kind else leaf
    shape, real = rows.shape[1:], jnp.issubdtype(rows.dtype, jnp.floating)
    if prod(shape) > LARGE or rows.dtype.itemsize < 4:
        return Part("apart", shape, kind)
    return Part("real" if real else "whole", shape, kind)


class Layout:
    """Where each part of a state lies."""

    def __init__(self, bank: State):
        """Lay the states of a bank out.

        Args:
            bank: All streams, on a leading axis; shapes are enough.
        """
        leaves, self.form = jax.tree_util.tree_flatten_with_path(bank, is_leaf=ring.is_view)
        self.parts = [place(leaf) for _, leaf in leaves]
        self.names = [jax.tree_util.keystr(path) for path, _ in leaves]

    def pack(self, state: State) -> Store:
        """Put the states of all streams into a store."""
        numpy = np if isinstance(state.count, np.ndarray) else jnp
        return self._join(state, numpy, state.count.shape)

    def unpack(self, store: Store) -> State:
        """Read the states of all streams."""
        return self._split(store, None)

    def of_stream(self, store: Store, stream: Int[Array, ""]) -> State:
        """Read the state of one stream; its rings are views, not copies."""
        apart = (
            one if part.kind else one[stream]
            for one, part in zip(store.apart, self._apart(), strict=True)
        )
        one = Store(tuple(apart), store.real[stream], store.whole[stream])
        return self._split(one, stream)

    def with_stream(self, store: Store, stream: Int[Array, ""], state: State) -> Store:
        """The store with a new state of one stream."""
        new, put = self._join(state, jnp, ()), lax.dynamic_update_index_in_dim
        apart = (
            one if part.kind else put(old, one, stream, 0)
            for old, one, part in zip(store.apart, new.apart, self._apart(), strict=True)
        )
        real, whole = put(store.real, new.real, stream, 0), put(store.whole, new.whole, stream, 0)
        return Store(tuple(apart), real, whole)

    def start(self, name: str) -> int:
        """Where a small field begins among a stream's real or whole numbers."""
        number = self.names.index(f".{name}")
        earlier = (p for p in self.parts[:number] if p.field == self.parts[number].field)
        return sum(prod(part.shape) for part in earlier)

    def _apart(self) -> Iterator[Part]:
        return (part for part in self.parts if part.field == "apart")

    def _join(self, state: State, numpy: Any, lead: tuple[int, ...]) -> Store:
        fields = {"apart": [], "real": [], "whole": []}
        leaves = jax.tree.leaves(state, is_leaf=ring.is_view)
        for leaf, part in zip(leaves, self.parts, strict=True):
            rows = leaf.rows if part.kind else leaf
            if part.field != "apart":
                rows = rows.reshape(*lead, prod(part.shape))
            fields[part.field].append(rows)
        real, whole = (numpy.concatenate(fields[one], axis=-1) for one in ("real", "whole"))
        return Store(tuple(fields["apart"]), real, whole)

    def _split(self, store: Store, stream: Int[Array, ""] | None) -> State:
        return jax.tree.unflatten(self.form, self._leaves(store, stream))

    def _leaves(self, store: Store, stream: Int[Array, ""] | None) -> Iterator[Any]:
        apart, starts = iter(store.apart), {"real": 0, "whole": 0}
        for part in self.parts:
            if part.field == "apart":
                rows, view = next(apart), stream
            else:
                numbers, start = getattr(store, part.field), starts[part.field]
                starts[part.field] = start + prod(part.shape)
                rows, view = numbers[..., start : starts[part.field]], None
                # A small view of one stream is all of a bank of one.
                lead = numbers.shape[:-1] or (1,) if part.kind else numbers.shape[:-1]
                rows = rows.reshape(*lead, *part.shape)
            yield replace(part.kind, rows=rows, stream=view) if part.kind else rows
