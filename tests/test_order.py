import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import order


@pytest.mark.parametrize("many", [1, 15, 16, 17, 100, 256])
def test_the_smallest_come_in_their_order_with_their_places(many):
    rng = np.random.default_rng(many)
    x = rng.normal(size=many).astype(np.float32)
    x[rng.random(many) < 0.2] = x[0]  # of equal ones the first
    wanted = np.argsort(x, kind="stable")[:5]
    values, places = jax.jit(order.smallest, static_argnums=1)(x, 5)
    np.testing.assert_array_equal(places[: len(wanted)], wanted)
    np.testing.assert_array_equal(values[: len(wanted)], x[wanted])
    assert np.isinf(values[len(wanted) :]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_quantile_is_the_number_in_that_place_of_the_finite_ones(share):
    rng = np.random.default_rng(3)
    x = rng.lognormal(size=257).astype(np.float32)
    x[5:60], x[100:120] = np.nan, np.inf
    finite = np.sort(x[np.isfinite(x)])
    wanted = finite[int(np.round(share * (len(finite) - 1)))]
    got = float(jax.jit(order.quantile, static_argnums=1)(x, share))
    assert got == pytest.approx(wanted, abs=2.0**-22 * float(finite[-1]))


def test_of_nothing_no_quantile_is_known():
    assert order.quantile(jnp.full(20, jnp.nan), 0.5) == jnp.inf
    assert order.quantile(jnp.array([jnp.nan, 2.0, jnp.inf]), 0.5) == 2.0
