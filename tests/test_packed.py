import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import packed, ring

push, read = jax.jit(packed.push), jax.jit(packed.read)


@pytest.mark.parametrize("start", [0, 2 * ring.WRAP - 5])
def test_what_is_read_is_what_was_written_to_a_230th_of_the_largest(start):
    rng, buffer, count = np.random.default_rng(0), packed.init(8, 3, 5), jnp.int32(start - 1)
    size = 10.0 ** rng.uniform(-2, 3, (20, 3, 1))
    rows, counts = rng.normal(size=(20, 3, 5)) * size, []
    for row in rows:
        count = ring.advance(count)
        buffer = push(buffer, count, jnp.asarray(row, jnp.float32))
        counts.append(int(count))
    assert buffer.rows.dtype == jnp.int8
    got = read(buffer, jnp.array(counts[-8:], jnp.int32))
    most = np.abs(rows[-8:]).max(axis=2, keepdims=True)
    assert (np.abs(got - rows[-8:]) <= most / 230).all()
    assert (np.abs(got - rows[-8:]) > most / 1000).any()


def test_nothing_stays_nothing_and_what_is_tiny_is_no_more():
    buffer = packed.init(4, 2, 3)
    np.testing.assert_array_equal(read(buffer, jnp.int32(0)), 0.0)
    for value in (0.0, 1e-30, 1e-9):
        buffer = push(buffer, jnp.int32(1), jnp.full((2, 3), value))
        np.testing.assert_allclose(read(buffer, jnp.int32(1)), 0.0, atol=1e-8)
    buffer = push(buffer, jnp.int32(2), jnp.array([[1e4, -1e4, 0.0], [1e-3, 0.0, -1e-3]]))
    wanted = [[1e4, -1e4, 0.0], [1e-3, 0.0, -1e-3]]
    np.testing.assert_allclose(read(buffer, jnp.int32(2)), wanted, rtol=0.01)
