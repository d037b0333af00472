import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import controller, model, recall, ring

MEMORY, FEWER, CHANNELS = 64, 32, 2
SCALE = np.array([2.0, 0.5])


def test_the_controller_has_words_for_all_that_may_be_strange():
    assert len(controller.CAUSES) == model.STRANGE  # it has no JAX to look there


@jax.jit
def compare(state, count, then, now):
    return recall.compare(state, count, then, now, jnp.asarray(SCALE, jnp.float32))


def by_phase(rows):
    """Rows [lags, channels], oldest first, as `recall.compare` takes them."""
    return rows.reshape(-1, recall.BLOCK, rows.shape[1])[:, ::-1].transpose(2, 1, 0)


def compared(values, lags):
    """Take a stream through the memory, sample n at a level that attends to `lags[n]` moments."""
    state = recall.init(MEMORY, CHANNELS, season=True)
    nothing = np.full((MEMORY, CHANNELS), np.nan)
    values = np.concatenate((nothing, values)).astype(np.float32)
    for n, many in enumerate(lags):
        then = values[MEMORY + n - many : MEMORY + n]
        state = compare(state, jnp.int32(n), by_phase(then), values[MEMORY + n])
    return state


def by_lag(state, row):
    """The distances of a scale, from the longest lag down to 1, in variances."""
    if row == len(recall.SCALES):
        return recall.by_lag(state)
    kept = np.asarray(state.distance.rows[0, row], np.float32)
    return kept[::-1].T.ravel() / recall.UNIT


def rounding(scale):
    """How far a distance may be off: half a unit in the last place for each sample it is of."""
    return 3e-5 if scale == recall.SEASON_SCALE else scale * 2.0**-12 + 2e-5


def windows(values, scale, since, cut=recall.FARTHEST):
    """D by lag and W by block, longest lags first, as weighted sums over windows, in float64.

    Args:
        since: By lag - 1 the first sample from which on that lag was compared without a gap.
    """
    newest, block = len(values) - 1, recall.BLOCK
    distance, there = np.zeros(MEMORY), np.zeros(MEMORY // block)
    measured = ~np.isnan(values)
    weights = [0.0] * (newest + 1)  # of each sample: those of which nothing is known weigh nothing
    left = 1.0
    for n in range(newest, -1, -1):
        if measured[n].any():
            weights[n] = left / scale
            left *= 1 - 1 / scale
    for lag in range(1, MEMORY + 1):
        # A block counts from when all of it is there; the oldest of the memory never does.
        whole = -(-lag // block) * block
        for n in range(max(whole, since[lag - 1]), newest + 1):
            now = measured[n]
            if not now.any() or whole == MEMORY:
                continue
            apart = np.minimum(((values[n] - values[n - lag]) / SCALE) ** 2, recall.FARTHEST)
            apart = np.where(measured[n - lag], apart, recall.UNKNOWN)
            distance[MEMORY - lag] += weights[n] * min(apart[now].mean(), cut)
            there[(MEMORY - lag) // block] += weights[n] / block
    return distance, there


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_recursive_distances_equal_weighted_windows_summed_by_hand(missing):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(90, CHANNELS)) * SCALE
    values[40, 0] = 1e6  # cut at `FARTHEST`
    values[rng.random((90, CHANNELS)) < missing] = np.nan
    state = compared(values, [MEMORY] * 90)
    for row, scale in enumerate((*recall.SCALES, recall.SEASON_SCALE)):
        cut = recall.SEASON_CUT if scale == recall.SEASON_SCALE else recall.FARTHEST
        distance, there = windows(values, scale, [0] * MEMORY, cut)
        there_by_lag = np.repeat(there, recall.BLOCK)
        got = np.where(there_by_lag > 0, by_lag(state, row), 0.0)
        np.testing.assert_allclose(got, distance, rtol=rounding(scale), atol=1e-6)
        np.testing.assert_allclose(state.compared[row], there, rtol=2e-5, atol=1e-6)


def test_lags_that_a_smaller_level_left_out_grow_anew():
    values = np.random.default_rng(1).normal(size=(100, CHANNELS)) * SCALE
    state = compared(values, [MEMORY] * 70 + [FEWER] * 10 + [MEMORY] * 20)
    since = [0] * FEWER + [80] * (MEMORY - FEWER)
    for row, scale in enumerate(recall.SCALES):
        distance, there = windows(values, scale, since)
        got = np.where(np.repeat(there, recall.BLOCK) > 0, by_lag(state, row), 0.0)
        np.testing.assert_allclose(got, distance, rtol=rounding(scale), atol=1e-6)
        np.testing.assert_allclose(state.compared[row], there, rtol=2e-5, atol=1e-6)
    # At the shortest scale the mean distance is back, at the longest it does not count yet.
    got = np.asarray(recall.distances(state, jnp.int32(1000), MEMORY))
    assert np.isinf(got).all()  # nothing here is `DELAY` old
    there, again = np.asarray(state.compared), (MEMORY - FEWER) // recall.BLOCK
    assert (there[0, 1:] > recall.COMPARED).all()
    assert (there[2, 1:again] < recall.COMPARED).all()


@pytest.mark.parametrize("count", [10, 200, 447, 500, 5000])
def test_the_newest_moments_and_hardly_compared_ones_do_not_count(count):
    blocks, rng = 16, np.random.default_rng(2)
    kept = rng.uniform(0, 4 * recall.UNIT, (3, recall.BLOCK, blocks)).astype(recall.HALF)
    there = rng.uniform(0.3, 1, (3, blocks)).astype(np.float32)
    state = recall.init(recall.BLOCK * blocks, 1)
    state = state._replace(distance=ring.View(kept[None]), compared=there)
    distance = kept.astype(np.float32) / recall.UNIT
    got = np.asarray(recall.distances(state, jnp.int32(count), recall.BLOCK * blocks))
    for row, scale in enumerate(recall.SCALES):
        for k in range(blocks):
            youngest = recall.BLOCK * (blocks - 1 - k) + 1
            old = youngest >= min(120, max(count // 4, 2 * scale))
            if old and there[row, k] > np.float32(recall.COMPARED):
                wanted = distance[row, :, k].min() / there[row, k]
                assert got[row, k] == pytest.approx(wanted, rel=1e-6)
            else:
                assert np.isinf(got[row, k])
    half = recall.BLOCK * blocks // 2
    np.testing.assert_array_equal(
        recall.distances(state, jnp.int32(count), half), got[:, -blocks // 2 :]
    )


def test_where_there_is_no_moment_nothing_is_known():
    np.testing.assert_array_equal(recall.strangeness(jnp.full((3, 5), jnp.inf)), -1.0)
    assert recall.rareness(jnp.full(64, jnp.inf)) == -1.0


def test_the_nearest_moments_are_the_least_distances_with_one_for_each_block():
    blocks, rng = 8, np.random.default_rng(4)
    kept = rng.permutation(1024)[: 3 * blocks * recall.BLOCK].reshape(3, -1)  # no two alike
    by_lag = (kept + 1024.0).astype(np.float32)
    by_lag[2, 64:80] *= 0.01  # all of the nearest in one block
    turned = by_lag.reshape(3, blocks, recall.BLOCK)[:, :, ::-1].transpose(0, 2, 1)
    far = recall.init(blocks * recall.BLOCK, 1)
    far = far._replace(distance=ring.View(jnp.asarray(turned[None], recall.HALF)))
    least = turned.min(axis=1)
    least[1, 3:] = np.inf  # fewer blocks than are wanted
    by_lag[1, 3 * recall.BLOCK :] = np.inf
    got = jax.jit(recall.nearest)(far, jnp.asarray(least))
    for row in range(3):
        taken, wanted, lags = set(), [], []
        for k in np.argsort(by_lag[row], kind="stable"):
            if np.isfinite(by_lag[row, k]) and k // recall.BLOCK not in taken:
                taken.add(k // recall.BLOCK)
                wanted.append(by_lag[row, k])
                lags.append(blocks * recall.BLOCK - k)
        many = min(len(wanted), recall.NEAREST)
        np.testing.assert_array_equal(got.distance[row, :many], wanted[:many])
        np.testing.assert_array_equal(got.lag[row, :many], lags[:many])
        assert np.isinf(got.distance[row, many:]).all()
    strange = recall.strangeness(got.distance)
    for row in range(3):
        near = np.asarray(got.distance[row])
        wanted = np.sqrt(near[np.isfinite(near)]).mean()
        assert float(strange[row]) == pytest.approx(wanted, rel=1e-6)


def test_rareness_is_the_distance_within_which_a_tenth_of_the_memory_lies():
    least = np.random.default_rng(11).uniform(0, 9, 32).astype(np.float32)
    least[:11] = np.inf  # 21 blocks are left
    got = recall.rareness(jnp.asarray(least))
    assert got == pytest.approx(np.sqrt(np.sort(least)[2]), rel=1e-5)


def test_a_channel_that_the_nearest_moment_foretells_counts_more():
    rng, many = np.random.default_rng(12), 200
    regular = np.tile([0.0, 3.0, 1.0, -2.0], many // 4)
    values = np.stack((regular, rng.normal(0, regular.std(), many)), axis=1).astype(np.float32)
    deviation = jnp.asarray(values.std(axis=0))
    far = recall.init(MEMORY, CHANNELS)
    np.testing.assert_allclose(recall.unit(far, deviation), deviation, rtol=1e-6)
    off = []
    for n in range(MEMORY, many):
        then, now = by_phase(values[n - MEMORY : n]), jnp.asarray(values[n])
        far = far._replace(lag=jnp.int32(4))
        far = recall.compare(far, jnp.int32(n), jnp.asarray(then), now, deviation)
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
    rows, push = ring.init_by_phase(64, CHANNELS), jax.jit(ring.push)
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
