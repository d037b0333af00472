import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import moments


@jax.jit
def deviation(values):
    """The running standard deviation after every value of a channel."""

    def one(state, n):
        state = moments.standardise(*state, n, values[n], jnp.ones(1))
        return state, jnp.sqrt(state[1])

    start = jnp.zeros(1), jnp.zeros(1)
    return jax.lax.scan(one, start, jnp.arange(len(values)))[1][:, 0]


def test_the_deviation_is_that_of_the_values_so_far():
    values = np.random.default_rng(0).normal(5.0, 2.0, (3000, 1))
    got = deviation(jnp.asarray(values, jnp.float32))
    for n in (100, 1000, 2999):
        assert got[n] == pytest.approx(values[: n + 1].std(), rel=1e-3)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
def test_one_absurd_value_moves_the_deviation_little(size):
    values = np.random.default_rng(1).normal(size=(3000, 1))
    values[2500] += size
    got = deviation(jnp.asarray(values, jnp.float32))
    assert got[2999] < 1.25 * values[:2500].std()


def test_spikes_that_come_again_and_again_belong_to_a_channel():
    values = 0.01 * np.random.default_rng(2).normal(size=(6000, 1))
    values[::200] += 10.0
    got = deviation(jnp.asarray(values, jnp.float32))
    assert got[-1] == pytest.approx(values.std(), rel=0.2)
