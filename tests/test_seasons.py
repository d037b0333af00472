from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import recall, ring, seasons


def distance_by_lag(values, lags):
    """Mean squared distance to the value each lag ago, over the variance, lag `lags` first."""
    apart = [np.mean((values[lag:] - values[:-lag]) ** 2) for lag in range(lags, 0, -1)]
    return jnp.asarray(np.array(apart) / max(np.var(values), 1e-12), jnp.float32)


def test_the_season_of_a_daily_pattern_is_found_and_none_where_there_is_none():
    rng, n = np.random.default_rng(2), np.arange(2000)
    known = jnp.ones(256, jnp.float32)
    daily = np.sin(2 * np.pi * n / 24) + 0.5 * (n % 24 < 5) + rng.normal(0, 0.2, len(n))
    find = jax.jit(seasons.nearest)
    none = jnp.int32(1)
    assert int(find(distance_by_lag(daily, 256), known, none)) == 24
    assert int(find(distance_by_lag(rng.normal(size=2000), 256), known, none)) == 1
    assert int(find(distance_by_lag(np.full(2000, 3.0), 256), known, none)) == 1
    # Averages that are there in part count as what they are of; hardly begun ones do not.
    assert int(find(0.3 * distance_by_lag(daily, 256), 0.3 * known, none)) == 24
    assert int(find(0.09 * distance_by_lag(daily, 256), 0.09 * known, none)) == 1
    week = daily + 1.0 * (n // 24 % 7 < 2)
    assert int(find(distance_by_lag(week, 512), jnp.ones(512), none)) == 168
    slow = np.sin(2 * np.pi * n / 97) + rng.normal(0, 0.05, len(n))
    assert int(find(distance_by_lag(slow, 256), known, none)) == 97
    short = jnp.where(jnp.arange(256, 0, -1) < 20, 1.0, 0.0)
    assert int(find(distance_by_lag(daily, 256), short, none)) == 1


def test_a_season_is_not_given_up_for_its_multiple_that_is_hardly_nearer():
    rng, n = np.random.default_rng(2), np.arange(2000)
    daily = np.sin(2 * np.pi * n / 24) + 0.25 * (n // 24 % 2) + rng.normal(0, 0.3, len(n))
    known, distance = jnp.ones(256, jnp.float32), distance_by_lag(daily, 256)
    find = jax.jit(seasons.nearest)
    assert int(find(distance, known, jnp.int32(1))) % 48 == 0
    assert int(find(distance, known, jnp.int32(24))) == 24
    single = distance_by_lag(np.sin(2 * np.pi * n / 24), 256)
    assert int(find(single, known, jnp.int32(48))) == 24  # the shorter one is as near


@pytest.mark.parametrize("lag", [1, 2, 5, 7])
def test_a_season_is_read_as_few_whole_seasons_ago_as_lie_in_the_past(lag):
    values, plain = ring.init(16, 1), np.arange(40.0)
    push = jax.jit(ring.push)
    for n, x in enumerate(plain):
        values = push(values, jnp.int32(n), jnp.float32([x]))
    season = partial(seasons.ahead, horizon=9)
    got = jax.jit(season)(values, jnp.int32(39), jnp.int32(lag))
    for step in range(1, 10):
        at = 39 + step
        while at > 39:
            at -= lag
        assert float(got[step - 1, 0]) == plain[at]


@pytest.mark.parametrize("walk", [False, True])
def test_noise_and_random_walks_have_no_season(walk):
    find, none = jax.jit(seasons.nearest), jnp.int32(1)
    known, found = jnp.ones(512, jnp.float32), []
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(2000, 2))
        values = values.cumsum(axis=0) if walk else values
        found.append(int(find(distance_by_lag(values, 512), known, none)))
    assert found.count(1) >= 19


def test_a_weak_season_beside_a_wandering_level_is_found():
    rng, n = np.random.default_rng(3), np.arange(2000)
    level = np.cumsum(rng.normal(0, 0.1, len(n)))
    values = np.sin(2 * np.pi * n / 48) + level + rng.normal(0, 0.3, len(n))
    distance = distance_by_lag(values, 512)
    assert int(jax.jit(seasons.nearest)(distance, jnp.ones(512), jnp.int32(1))) == 48


def test_a_season_outlives_a_level_that_remembers_little_and_goes_with_its_pattern():
    rng, n = np.random.default_rng(5), np.arange(4000)
    find, known = jax.jit(seasons.nearest), jnp.ones(1024, jnp.float32)
    values = np.sin(2 * np.pi * n / 240) + rng.normal(0, 0.3, len(n))
    distance = distance_by_lag(values, 1024)
    season = find(distance, known, jnp.int32(1))
    assert abs(int(season) - 240) <= 2
    for memory in (512, 256, 128, 0):  # the lags beyond are forgotten
        little = known * (jnp.arange(1024, 0, -1) <= memory)
        assert int(find(distance * little, little, season)) == int(season)
    noise = distance_by_lag(rng.normal(size=4000), 1024)
    assert int(find(noise, known, season)) == 1


def far_by_lag(distance, known):
    """Distances that find a season, from the longest lag down to 1, as `recall` keeps them."""
    blocks = len(distance) // recall.BLOCK
    turned = distance.reshape(blocks, recall.BLOCK)[:, ::-1].T
    far = recall.init(len(distance), 1, season=True)
    return far._replace(season=ring.View(turned[None, None]), compared=known[None])


def lived(values, believed, lags, memory=64):
    """The profiles after each sample, told of a season `lags[n]` at sample n."""

    @jax.jit
    def one(state, count, x, believed, lag):
        lags = jnp.arange(memory, 0, -1)
        # As far as the season says: alike at its multiples, apart between.
        distance = jnp.where(lags % lag == 0, 0.1, 2.0)
        known = (lag > 1) * jnp.ones(memory // recall.BLOCK)
        state = seasons.take(state, count, x, believed, far_by_lag(distance, known))
        return state, state.profiles.rows[0, 0, ring.row(state.profiles, count)]

    state, found = seasons.init(memory, values.shape[1]), []
    for n, x in enumerate(values):
        there = jnp.asarray(believed[n], jnp.float32)
        row = one(state, jnp.int32(n), jnp.asarray(x, jnp.float32), there, jnp.int32(lags[n]))
        state = row[0]
        found.append((int(state.lag), np.asarray(row[1])))
    return found, float(state.phase)


def test_a_profile_is_the_average_over_seasons_of_what_came_at_its_place():
    rng, lag = np.random.default_rng(4), 8
    values = rng.normal(size=(400, 2))
    believed = (rng.random((400, 2)) < 0.9).astype(float)
    lags = np.where(np.arange(400) < seasons.EVERY, 1, lag)
    found, phase = lived(values, believed, lags)
    assert phase == pytest.approx((400 - seasons.EVERY) % lag / lag, abs=1e-5)
    assert {one for one, _ in found[: seasons.EVERY]} == {1}
    assert {one for one, _ in found[seasons.EVERY :]} == {lag}
    wanted = np.zeros((400, 2, 2))
    for n in range(seasons.EVERY, 400):
        passed = n - seasons.EVERY
        for k, slow in enumerate(seasons.RATES):
            if passed < lag:
                wanted[n, k] = values[n]
                continue
            rate = max(slow, 1 / (1 + passed // lag)) * believed[n]
            wanted[n, k] = wanted[n - lag, k] + rate * (values[n] - wanted[n - lag, k])
    got = np.array([row for _, row in found])
    np.testing.assert_allclose(got[seasons.EVERY :], wanted[seasons.EVERY :], atol=1e-5)
    # Without a season they are smoothed values.
    smooth = values[0]
    for n in range(1, seasons.EVERY):
        rate = max(seasons.RATES[0], 1 / (1 + n)) if n > 1 else 1 / 2
        smooth = smooth + rate * believed[n] * (values[n] - smooth)
        np.testing.assert_allclose(got[n, 0], smooth, atol=1e-5)


def test_a_season_of_half_the_memory_is_found_and_averaged():
    memory, season, begins = 64, 32, seasons.EVERY
    values = np.arange(400.0)[:, None]
    lags = np.where(np.arange(400) < begins, 1, season)
    found, _ = lived(values, np.ones((400, 1)), lags, memory)
    assert {one for one, _ in found[begins:]} == {season}
    got = np.array([row[1, 0] for _, row in found])[begins:]
    n = np.arange(begins, 400.0)
    whole = (n - begins) // season
    # Of a slope the mean over all seasons so far lies half of them back.
    few = whole < 10
    np.testing.assert_allclose(got[few], (n - season * whole / 2)[few], atol=1e-3)


def test_a_season_that_is_measured_anew_a_little_off_keeps_its_profile():
    same = jax.jit(seasons.same)
    assert bool(same(jnp.int32(95), jnp.int32(96)))
    assert bool(same(jnp.int32(24), jnp.int32(24)))
    assert not bool(same(jnp.int32(8), jnp.int32(7)))
    assert not bool(same(jnp.int32(48), jnp.int32(24)))
