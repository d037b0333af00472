"""The states of a bank in few arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import model, ring
from adaptive.store import LARGE, Layout

SHAPE, STREAMS = model.Shape(3, 2, 512, 8, 8, 2, 4), 3


@pytest.fixture(scope="module")
def bank():
    """Streams in which no two numbers are alike, and how they are laid out."""
    params = model.init_params(np.random.default_rng(0), SHAPE)
    forms = jax.eval_shape(partial(model.bank, shape=SHAPE, streams=STREAMS), params)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: rng.permutation(int(np.prod(a.shape))).reshape(a.shape).astype(a.dtype), forms
    )


def same(one, other):
    paths = jax.tree_util.tree_leaves_with_path(one)
    for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_what_is_packed_is_unpacked_in_numpy_and_in_jax(bank):
    layout = Layout(bank)
    store = layout.pack(bank)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(store))
    same(bank, layout.unpack(store))
    same(store, jax.jit(layout.pack)(jax.tree.map(jnp.asarray, bank)))
    same(bank, jax.jit(layout.unpack)(jax.tree.map(jnp.asarray, store)))


def test_what_is_small_shares_two_arrays_and_what_is_large_stands_alone(bank):
    layout = Layout(bank)
    store = layout.pack(bank)
    leaves = jax.tree.leaves(bank)  # the arrays of rings, too
    small = [a for a in leaves if a[0].size <= LARGE and a.dtype.itemsize == 4]
    assert len(small) > 20
    assert any(ring.is_view(one) for one in jax.tree.leaves(bank, is_leaf=ring.is_view))
    assert len(store.apart) == len(leaves) - len(small)
    assert store.real.shape[1] + store.whole.shape[1] == sum(a[0].size for a in small)


def test_a_new_state_of_one_stream_leaves_the_others_as_they_were(bank):
    layout = Layout(bank)

    @jax.jit
    def move(store, stream):
        state = layout.of_stream(store, stream)
        count = state.count + 100
        values = ring.push(state.values, count, jnp.full(3, -7.0))
        state = state._replace(count=count, values=values, level=state.level - 50)
        return layout.with_stream(store, stream, state)

    moved = layout.unpack(jax.tree.map(np.asarray, move(layout.pack(bank), jnp.int32(1))))
    values, at = bank.values.rows.copy(), (bank.count[1] + 100) % bank.values.length
    for copy in (0, bank.values.length):
        values[1, :, at % ring.PHASES, (at + copy) // ring.PHASES] = -7.0
    count, level = bank.count.copy(), bank.level.copy()
    count[1] += 100
    level[1] -= 50
    wanted = bank._replace(count=count, level=level, values=ring.Ring(values, by_phase=True))
    same(wanted, moved)
