import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import controller, recall, ring

MEMORY, FEWER, CHANNELS = 32, 16, 2
SCALE = np.array([2.0, 0.5])


def test_the_controller_knows_how_many_parts_are_distances():
    assert len(recall.SCALES) == controller.DISTANCES  # it has no JAX to look there


@jax.jit
def compare(state, then, now):
    return recall.compare(state, then, now, jnp.asarray(SCALE, jnp.float32))


def compared(values, seen, lags):
    """Take a stream through the memory, sample n at a level that attends to `lags[n]` moments."""
    state = recall.init(MEMORY, CHANNELS, len(recall.SCALES) + 1)
    nothing = np.full((MEMORY, CHANNELS), np.nan)
    values = np.concatenate((nothing, np.where(seen > 0, values, np.nan))).astype(np.float32)
    for n, many in enumerate(lags):
        then = values[MEMORY + n - many : MEMORY + n]
        state = compare(state, then.T, values[MEMORY + n])
    return state


def windows(values, seen, scale, since, cut=recall.FARTHEST):
    """D and W by lag from `MEMORY` down to 1, as weighted sums over windows, in float64.

    Args:
        since: By lag - 1 the first sample from which on that lag was compared without a gap.
    """
    newest = len(values) - 1
    distance, there = np.zeros(MEMORY), np.zeros(MEMORY)
    for lag in range(1, MEMORY + 1):
        for n in range(max(lag, since[lag - 1]), newest + 1):
            both = seen[n] * seen[n - lag]
            if not both.any():
                continue
            apart = np.minimum(((values[n] - values[n - lag]) / SCALE) ** 2, cut)
            weight = (1 - 1 / scale) ** (newest - n) / scale
            distance[MEMORY - lag] += weight * apart[both > 0].mean()
            there[MEMORY - lag] += weight
    return distance, there


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_recursive_distances_equal_weighted_windows_summed_by_hand(missing):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(70, CHANNELS)) * SCALE
    values[40, 0] = 1e6  # cut at `FARTHEST`
    seen = (rng.random((70, CHANNELS)) >= missing) * 1.0
    state = compared(values, seen, [MEMORY] * 70)
    for row, scale in enumerate((*recall.SCALES, recall.SEASON_SCALE)):
        cut = recall.SEASON_CUT if scale == recall.SEASON_SCALE else recall.FARTHEST
        distance, there = windows(values, seen, scale, [0] * MEMORY, cut)
        np.testing.assert_allclose(state.distance[row], distance, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(state.compared[row], there, rtol=2e-5, atol=1e-6)


def test_lags_that_a_smaller_level_left_out_grow_anew():
    values = np.random.default_rng(1).normal(size=(60, CHANNELS)) * SCALE
    seen = np.ones((60, CHANNELS))
    state = compared(values, seen, [MEMORY] * 30 + [FEWER] * 10 + [MEMORY] * 20)
    since = [0] * FEWER + [40] * (MEMORY - FEWER)
    for row, scale in enumerate(recall.SCALES):
        distance, there = windows(values, seen, scale, since)
        np.testing.assert_allclose(state.distance[row], distance, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(state.compared[row], there, rtol=2e-5, atol=1e-6)
    # At the shortest scale the mean distance is back, at the longest it does not count yet.
    got = np.asarray(recall.distances(state, jnp.int32(1000), MEMORY))
    assert np.isinf(got).all()  # nothing here is `DELAY` old
    there = np.asarray(state.compared)
    assert (there[0] > recall.COMPARED).all()
    assert (there[2, : MEMORY - FEWER] < recall.COMPARED).all()


@pytest.mark.parametrize("count", [10, 200, 447, 500, 5000])
def test_the_newest_moments_and_hardly_compared_ones_do_not_count(count):
    lags, rng = 256, np.random.default_rng(2)
    distance = rng.uniform(0, 4, (4, lags)).astype(np.float32)
    there = rng.uniform(0.3, 1, (4, lags)).astype(np.float32)
    state = recall.init(lags, 1, 4)._replace(distance=distance, compared=there)
    got = np.asarray(recall.distances(state, jnp.int32(count), lags))
    lag = np.arange(lags, 0, -1)
    for row, scale in enumerate(recall.SCALES):
        for k in range(lags):
            old = lag[k] >= min(120, max(count // 4, 2 * scale))
            if old and there[row, k] > np.float32(recall.COMPARED):
                assert got[row, k] == pytest.approx(distance[row, k] / there[row, k], rel=1e-6)
            else:
                assert np.isinf(got[row, k])
    np.testing.assert_array_equal(recall.distances(state, jnp.int32(count), 128), got[:, -128:])


def test_where_there_is_no_moment_nothing_is_known():
    np.testing.assert_array_equal(recall.strangeness(jnp.full((3, 5), jnp.inf)), -1.0)
    assert recall.rareness(jnp.full(64, jnp.inf)) == -1.0


def test_the_nearest_moments_are_the_least_distances_with_one_for_each_block():
    rng = np.random.default_rng(4)
    distance = rng.uniform(0, 3, (4, 128)).astype(np.float32)
    distance[1, 40:] = np.inf  # fewer blocks than are wanted
    distance[3, 64:80] *= 0.01  # all of the nearest in one block
    got = jax.jit(recall.nearest)(jnp.asarray(distance))
    for row in range(4):
        taken, wanted, lags = set(), [], []
        for k in np.argsort(distance[row], kind="stable"):
            if np.isfinite(distance[row, k]) and k // recall.BLOCK not in taken:
                taken.add(k // recall.BLOCK)
                wanted.append(distance[row, k])
                lags.append(128 - k)
        many = min(len(wanted), recall.NEAREST)
        np.testing.assert_array_equal(got.distance[row, :many], wanted[:many])
        np.testing.assert_array_equal(got.lag[row, :many], lags[:many])
        assert np.isinf(got.distance[row, many:]).all()
    strange = recall.strangeness(got.distance)
    for row in range(4):
        near = np.asarray(got.distance[row])
        wanted = np.sqrt(near[np.isfinite(near)]).mean()
        assert float(strange[row]) == pytest.approx(wanted, rel=1e-6)


def test_rareness_is_the_distance_within_which_a_tenth_of_the_memory_lies():
    distance = np.random.default_rng(11).uniform(0, 9, 32 * recall.BLOCK).astype(np.float32)
    distance[: 11 * recall.BLOCK] = np.inf  # 21 blocks are left
    least = np.sort(distance.reshape(-1, recall.BLOCK).min(axis=1))
    assert recall.rareness(jnp.asarray(distance)) == pytest.approx(np.sqrt(least[2]), rel=1e-6)


def test_a_channel_that_the_nearest_moment_foretells_counts_more():
    rng, many = np.random.default_rng(12), 200
    regular = np.tile([0.0, 3.0, 1.0, -2.0], many // 4)
    values = np.stack((regular, rng.normal(0, regular.std(), many)), axis=1).astype(np.float32)
    deviation = jnp.asarray(values.std(axis=0))
    far = recall.init(MEMORY, CHANNELS, 3)
    np.testing.assert_allclose(recall.unit(far, deviation), deviation, rtol=1e-6)
    off = []
    for n in range(MEMORY, many):
        then, now = jnp.asarray(values[n - MEMORY : n].T), jnp.asarray(values[n])
        far = recall.compare(far._replace(lag=jnp.int32(4)), then, now, deviation)
        off.append((values[n] - values[n - 4]) ** 2)
    cut = (recall.CUT * np.asarray(deviation)) ** 2
    np.testing.assert_allclose(far.apart, np.minimum(off, cut).mean(axis=0), rtol=1e-4, atol=1e-6)
    got = np.asarray(recall.unit(far, deviation)) / np.asarray(deviation)
    assert got[0] / got[1] == pytest.approx(recall.LEAST_UNIT, rel=1e-6)
    assert np.mean(1 / got**2) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("missing", [[], [55, 60, 88]])
def test_the_share_of_a_channel_is_its_part_in_the_weighted_distance_of_windows(missing):
    rng, many = np.random.default_rng(6), 90
    values = rng.normal(size=(many, CHANNELS)) * SCALE
    values[missing, 0] = np.nan
    rows, push = ring.init_by_channel(64, CHANNELS), jax.jit(ring.push)
    for n, x in enumerate(values):
        rows = push(rows, jnp.int32(n), x.astype(np.float32))
    lag, weight = np.array([20, 25, 31, 40, 0]), np.array([0.5, 0.2, 0.2, 0.1, 0.0])
    got = jax.jit(recall.apart_by_channel)(
        rows,
        jnp.int32(many - 1),
        jnp.asarray(lag, jnp.int32),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(SCALE, jnp.float32),
    )
    window = recall.SCALES[1]
    apart = sum(
        w
        * np.nan_to_num(
            ((values[-window:] - values[many - at - window : many - at]) / SCALE) ** 2
        ).mean(0)
        for at, w in zip(lag, weight, strict=True)
    )
    np.testing.assert_allclose(got, apart / apart.sum(), rtol=1e-4)
