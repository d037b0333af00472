"""The states of a bank's streams in few arrays: every array of a call costs microseconds.

Rings and what is large stay as they are; all that is small lies side by side, in one array of real
numbers and one of whole ones.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adaptive import ring
from adaptive.model import State

LARGE = 512  # numbers of one stream that an array of its own is worth


class Store(NamedTuple):
    """All streams of a bank."""

    apart: tuple[Any, ...]  # rings, and arrays (streams, *shape)
    real: Float[Array, "streams real"]
    whole: Int[Array, "streams whole"]


def place(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """The field of a store that a part belongs to, and its shape in one stream."""
    if ring.is_ring(leaf):
        return "apart", ()
    shape = leaf.shape[1:]
    if prod(shape) > LARGE:
        return "apart", shape
    return "real" if jnp.issubdtype(leaf.dtype, jnp.floating) else "whole", shape


class Layout:
    """Where each part of a state lies."""

    def __init__(self, bank: State):
        """Lay the states of a bank out.

        Args:
            bank: All streams, on a leading axis; shapes are enough.
        """
        leaves, self.form = jax.tree.flatten(bank, is_leaf=ring.is_ring)
        self.parts = [place(leaf) for leaf in leaves]

    def pack(self, state: State) -> Store:
        """Put the states of all streams into a store."""
        return self._join(state, np if isinstance(state.count, np.ndarray) else jnp)

    def unpack(self, store: Store) -> State:
        """Read the states of all streams."""
        return self._split(store)

    def of_stream(self, store: Store, stream: Int[Array, ""]) -> State:
        """Read the state of one stream; its rings are views, not copies."""
        return self._split(ring.of_stream(store, stream))

    def with_stream(self, store: Store, stream: Int[Array, ""], state: State) -> Store:
        """The store with a new state of one stream."""
        return ring.with_stream(store, stream, self._join(state, jnp))

    def _join(self, state: State, numpy: Any) -> Store:
        parts = {"apart": [], "real": [], "whole": []}
        leaves = jax.tree.leaves(state, is_leaf=ring.is_ring)
        for leaf, (kind, shape) in zip(leaves, self.parts, strict=True):
            if kind != "apart":
                leaf = leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], prod(shape))
            parts[kind].append(leaf)
        real, whole = (numpy.concatenate(parts[kind], axis=-1) for kind in ("real", "whole"))
        return Store(tuple(parts["apart"]), real, whole)

    def _split(self, store: Store) -> State:
        return jax.tree.unflatten(self.form, self._leaves(store))

    def _leaves(self, store: Store) -> Iterator[Any]:
        apart, starts = iter(store.apart), {"real": 0, "whole": 0}
        for kind, shape in self.parts:
            if kind == "apart":
                yield next(apart)
                continue
            numbers, start = getattr(store, kind), starts[kind]
            starts[kind] = start + prod(shape)
            part = numbers[..., start : starts[kind]]
            yield part.reshape(*numbers.shape[:-1], *shape)
