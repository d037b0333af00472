import jax
import jax.numpy as jnp
import numpy as np

from adaptive import attention, compression, layers

DIM, HEADS, INPUTS, OUTPUTS = 8, 4, 3, 2
FORM = attention.Form(window=6)


def made(seed):
    """Parameters with a head that is not zero, and inputs."""
    rng = np.random.default_rng(seed)
    params = layers.init_params(rng, INPUTS, OUTPUTS, attention.slopes, dim=DIM, heads=HEADS)
    head = jnp.asarray(rng.normal(size=(DIM, OUTPUTS)), jnp.float32)
    return params._replace(head=head), jnp.asarray(rng.normal(size=(25, INPUTS)), jnp.float32)


def whole(params, inputs):
    return attention.encode_window(params, inputs, jnp.ones(len(inputs)), FORM)


def kept(params, inputs, heads, units):
    """What the first heads and hidden units alone say after the last input."""
    cache = attention.init_cache(params, FORM, 4)
    for n, x in enumerate(inputs):
        cache, token = write(params, cache, jnp.int32(n), x)
    count = jnp.int32(len(inputs) - 1)
    return attention.encode(params, cache, token, count, window=6, heads=heads, units=units)[0]


write = jax.jit(attention.write)


def test_eight_bits_are_near_and_stay_what_they_are():
    params, inputs = made(0)
    rounded = compression.rounded(params)
    for one, exact in zip(jax.tree.leaves(rounded), jax.tree.leaves(params), strict=True):
        most = np.abs(exact).max(axis=tuple(range(exact.ndim - 1)), initial=0.0)
        assert (np.abs(one - exact) <= most / 254 + 1e-7).all()
    again = compression.rounded(rounded)
    for one, two in zip(jax.tree.leaves(again), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    exact, near = whole(params, inputs), whole(rounded, inputs)
    assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()
    numbers, unit = compression.packed(params.head)
    assert numbers.dtype == jnp.int8
    assert unit.shape == (1, OUTPUTS)


def test_the_order_of_heads_and_units_changes_nothing_of_the_whole():
    params, inputs = made(1)
    rng = np.random.default_rng(2)
    heads, units = (jnp.asarray(rng.permutation(n)) for n in (HEADS, 2 * DIM))
    moved = compression.ordered(params, heads, units)
    np.testing.assert_allclose(whole(moved, inputs), whole(params, inputs), rtol=1e-4, atol=1e-5)
    assert np.abs(kept(moved, inputs, 2, 8) - kept(params, inputs, 2, 8)).max() > 1e-2


def test_what_matters_to_the_loss_comes_first_and_is_kept_when_the_rest_is_pruned():
    rng = np.random.default_rng(3)
    params, _ = made(4)
    layer = params.layers[0]
    # Two heads and five units say much, the others hardly anything.
    loud_heads, loud_units = [1, 3], [0, 4, 7, 9, 14]
    quiet = layer._replace(
        out=(0.01 * layer.out).at[jnp.array(loud_heads)].set(layer.out[jnp.array(loud_heads)]),
        down=(0.01 * layer.down).at[jnp.array(loud_units)].set(layer.down[jnp.array(loud_units)]),
    )
    params = params._replace(layers=(quiet,))
    slope = jax.jit(jax.grad(lambda p, x, y: jnp.mean((whole(p, x) - y) ** 2)))
    known, names = compression.init(params), params
    places = [np.arange(HEADS), np.arange(2 * DIM)]
    for _ in range(40):
        x = jnp.asarray(rng.normal(size=(25, INPUTS)), jnp.float32)
        y = jnp.asarray(rng.normal(size=(20, OUTPUTS)), jnp.float32)
        known, *order = compression.weigh(known, params, slope(params, x, y))
        params = compression.ordered(params, *order)
        places = [place[np.asarray(o)] for place, o in zip(places, order, strict=True)]
        for means in known:
            assert (np.diff(means) <= 0).all()
    assert set(places[0][:2]) == set(loud_heads)
    assert set(places[1][:5]) == set(loud_units)
    inputs = jnp.asarray(rng.normal(size=(25, INPUTS)), jnp.float32)
    answer = whole(names, inputs)[-1]
    pruned = np.abs(kept(params, inputs, 2, 5) - answer).max()
    # The same share of the first order, where two of the heads and units are others.
    assert pruned < 0.1 * np.abs(kept(names, inputs, 2, 5) - answer).max()
