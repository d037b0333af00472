"""What is taken for a change, and what is forgotten then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from river.drift import PageHinkley

from adaptive import drift


@jax.jit
def watched(error, season=1):
    """Where changes were found in squared errors [rows, channels], whose usual size is 1."""
    usual = jnp.ones(error.shape[1])

    def one(state, n):
        state = drift.watch(state, n, error[n], usual, jnp.int32(season))
        return state, state.since == drift.FRESH

    return jax.lax.scan(one, drift.init(), jnp.arange(len(error)))[1]


def errors(rows, channels=1, ratio=1.0, start=0, seed=0):
    made = np.random.default_rng(seed).normal(size=(rows, channels)) ** 2
    made[start:] *= ratio
    return jnp.asarray(made, jnp.float32)


def test_the_sum_is_that_of_page_done_by_hand():
    error = np.asarray(errors(2000, ratio=3.0, start=1000))
    total, found = 0.0, []
    for n, x in enumerate(error[:, 0]):
        if n >= drift.FIRST:
            total = max(total + min(x, drift.MOST) - 1 - drift.SLACK, 0.0)
        if total > drift.THRESHOLD + drift.A_SEASON:
            found.append(n)
            total = 0.0
    assert len(found) > 5
    assert np.flatnonzero(watched(error)).tolist() == found


@pytest.mark.parametrize("channels", [1, 5])
def test_errors_as_usual_are_no_change(channels):
    assert not watched(errors(100_000, channels)).any()


def test_errors_of_a_heavy_tail_are_no_change():
    made = np.random.default_rng(1).standard_t(3, size=(100_000, 1)) ** 2 / 3
    assert not watched(jnp.asarray(made, jnp.float32)).any()


@pytest.mark.parametrize(("ratio", "late"), [(2.5, 150), (4.0, 60), (100.0, 10)])
def test_larger_errors_are_a_change_soon(ratio, late):
    found = np.flatnonzero(watched(errors(3000, ratio=ratio, start=2000)))
    assert 2000 <= found[0] < 2000 + late


def test_what_comes_back_in_every_season_is_no_change():
    season = 300
    made = 0.2 * np.asarray(errors(20 * season))
    made.reshape(20, season)[:, 40:70] *= 40  # nearly all of the error is in a tenth of it
    made /= made.mean()
    assert watched(jnp.asarray(made), season=1).any()
    assert not watched(jnp.asarray(made), season=season).any()


def test_a_sum_of_many_becomes_one_of_few_and_grows_again():
    state, memory, total = drift.init(), jnp.float32(1000.0), 0.0
    for n in range(6000):
        state = drift.State(state.sum, jnp.int32(drift.FRESH if n == 5000 else state.since + 1))
        total = total * float(drift.kept(state, memory)) + 1.0
        if n == 4999:
            assert total == pytest.approx(1000, rel=0.02)  # a sum of ones is its own length
        if n == 5000:
            assert total == pytest.approx(drift.FRESH + 1, rel=0.02)
        if n == 5100:
            assert 50 < total < 130
    assert 300 < total < 1000


@pytest.mark.parametrize("ratio", [2.5, 4.0, 10.0])
def test_a_change_is_found_when_river_finds_it(ratio):
    later = []
    for seed in range(5):
        error = np.asarray(errors(3000, ratio=ratio, start=2000, seed=seed))
        # Theirs knows no usual error but the mean so far, and cuts nothing.
        theirs = PageHinkley(
            min_instances=drift.FIRST,
            delta=drift.SLACK,
            threshold=drift.THRESHOLD + drift.A_SEASON,
            alpha=1.0,
            mode="up",
        )
        found = []
        for n, x in enumerate(np.minimum(error[:, 0], drift.MOST).tolist()):
            theirs.update(x)
            if theirs.drift_detected:
                found.append(n)
        later.append(int(np.flatnonzero(watched(jnp.asarray(error)))[0]) - found[0])
    assert np.abs(later).max() <= 5
