"""What is a glitch, and that glitches do not harm forecasts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import glitch, model
from adaptive.settings import Level

SEASON = 20


@jax.jit
def lived(values, foreseen=None):
    """The state at the end, and which values are believed [rows, channels].

    Without a forecast for each value it is the value before.
    """
    rows = jnp.arange(len(values))

    def one(state, n):
        x = values[n]
        before = values[jnp.maximum(n - 1, 0)] if foreseen is None else foreseen[n]
        others = values[jnp.maximum(n - jnp.array([1, SEASON, 2 * SEASON]), 0)]
        first = partial(jax.lax.dynamic_slice_in_dim, values.T, 0, glitch.FIRST, axis=1)
        return glitch.believe(state, n, x, jnp.ones_like(x), before, others, first)

    return jax.lax.scan(one, glitch.init(values.shape[1]), rows)


def noise(rows=1000, channels=1, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, channels))


def test_of_ordinary_noise_everything_is_believed():
    _, believed = lived(noise(4000, 3))
    assert np.all(believed)


@pytest.mark.parametrize("height", [30.0, 1e9])
def test_a_lone_absurd_value_is_not_believed_and_moves_nothing(height):
    values = noise()
    values[500] = height
    state, believed = lived(values)
    assert np.flatnonzero(~(np.asarray(believed[:, 0]) > 0)).tolist() == [500]
    assert float(glitch.scale(state)[0]) == pytest.approx(1.0, rel=0.1)


def test_a_new_level_is_believed_from_its_second_sample_on():
    values = noise()
    values[500:] += 40.0
    _, believed = lived(values, jnp.zeros_like(values))
    assert np.flatnonzero(np.asarray(believed[:, 0]) == 0).tolist() == [500]


def test_a_run_is_believed_after_so_many_samples_even_if_never_foreseen():
    values = np.where(np.arange(1000) >= 500, 40.0 * (-1.0) ** np.arange(1000), 0.0)[:, None]
    values += 0.1 * noise()
    _, believed = lived(values)
    assert np.flatnonzero(np.asarray(believed[:, 0]) == 0).tolist() == [500, 501, 502]


def test_a_pulse_of_every_season_is_believed_from_the_third_on():
    values = 0.1 * noise()
    values[510::SEASON] += 30.0
    _, believed = lived(values)
    pulses = np.asarray(believed[:, 0])[510::SEASON]
    assert not pulses[:2].any()
    assert pulses[2:].all()


def test_what_happens_often_is_no_glitch():
    rng = np.random.default_rng(1)
    values = noise(6000)
    often = rng.random(6000) < 0.06
    often[:1000] = False
    values[often] += 25.0
    _, believed = lived(values)
    late = often & (np.arange(6000) > 4000)
    assert np.asarray(believed[late, 0]).mean() > 0.9


def test_absurd_values_among_the_first_ones_are_forgotten():
    values = noise(300, 2)
    values[[0, 7, 30], 0] = 1e7
    state, believed = lived(values)
    np.testing.assert_allclose(glitch.scale(state), 1.0, rtol=0.2)
    assert np.asarray(believed)[100:].all()


def test_a_channel_that_was_constant_is_believed_when_it_moves():
    values = np.zeros((1000, 1))
    values[500:] = noise(500)
    state, believed = lived(values)
    assert np.asarray(believed)[530:].mean() > 0.98
    assert float(glitch.scale(state)[0]) > 0.1


@pytest.mark.slow
def test_one_absurd_value_in_a_hundred_hardly_harms_the_forecasts():
    shape = model.Shape(1, 1, 512, 16, 8, 2, 32)
    params = model.init_params(np.random.default_rng(0), shape)
    rng = np.random.default_rng(2)
    rows = 3000
    clean = np.sin(2 * np.pi * np.arange(rows) / 24)[:, None] + 0.1 * rng.normal(size=(rows, 1))
    absurd = rng.random(rows) < 0.01
    values = np.where(absurd[:, None], 1e6 * rng.normal(size=(rows, 1)), clean)

    @jax.jit
    def forecasts(values):
        def one(state, x):
            level = Level("recall", 512)
            state, out = model.step(params, state, x, jnp.ones_like(x), level)
            return state, out.forecast[0]

        return jax.lax.scan(one, model.init(params, shape), jnp.asarray(values, jnp.float32))[1]

    def error(values):
        made = np.asarray(forecasts(values))[:-1]
        judged = ~absurd[1:] & (np.arange(rows - 1) > 1000)
        return np.mean((made - clean[1:])[judged] ** 2)

    assert error(values) < 1.15 * error(clean)


@pytest.mark.parametrize("seen", [1.0, 0.4, 0.0])
def test_of_the_first_values_only_those_that_were_measured_make_mean_and_deviation(seen):
    rng = np.random.default_rng(4)
    values = 5.0 + noise(2, glitch.FIRST, seed=4)  # (channels, first)
    values[:, 7] = 1e6  # an outlier among them
    values[0, rng.random(glitch.FIRST) >= seen] = np.nan
    state = jax.jit(glitch.begin)(glitch.init(2), jnp.asarray(values, jnp.float32))
    for mean, variance, row in zip(state.mean, state.variance, values, strict=True):
        known = row[np.isfinite(row) & (np.abs(row) < 100)]
        assert float(mean) == pytest.approx(known.mean() if len(known) else 0.0, rel=1e-5)
        assert float(variance) == pytest.approx(known.var() if len(known) else 0.0, rel=1e-4)
