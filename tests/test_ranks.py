import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptive import ranks, runtime, surprise, usual
from adaptive.surprise import Rank
from adaptive.usual import Usual

LEVELS, PARTS, DISTANCES, ROWS = 2, 8, 3, 250


def scan(state, rows, level):
    """Rank rows one after the other."""

    def one(k, carry):
        state, out = carry
        state, compared = ranks.rank(state, level, rows[k], DISTANCES)
        return state, out.at[k].set(compared)

    out = jnp.zeros((len(rows), len(ranks.FIELDS)))
    return lax.fori_loop(0, len(rows), one, (state, out))


@pytest.fixture(scope="module")
def programs():
    """One kernel for each level."""
    first, rows = ranks.init(LEVELS, PARTS, DISTANCES), jnp.zeros((ROWS, PARTS))
    found = []
    for level in range(LEVELS):
        program = runtime.one_kernel(lambda state, rows, level=level: scan(state, rows, level))
        found.append(jax.jit(program).lower(first, rows).compile(runtime.WITHIN_A_KERNEL))
    return found


class Reference:
    """The same in plain Python, of the parts that the mandatory answer uses."""

    def __init__(self):
        self.parts = [Usual() for _ in range(PARTS)]
        self.rank, self.mean = Rank(), [0.0] * DISTANCES

    def __call__(self, row):
        most, in_full, part = -np.inf, -np.inf, -1
        for k, value in enumerate(row):
            if value >= 0:
                trust, above = self.parts[k].trust, self.parts[k].above(value)
                if trust * above > most:
                    most, part = trust * above, k
                in_full = max(in_full, above)
        if part < 0:
            most = in_full = 0.0
        rate, relative = max(1 / (self.rank.total + 1), 1 / surprise.NORMAL), []
        for k, value in enumerate(row[:DISTANCES]):
            value, mean = max(value, 0.0), self.mean[k]
            relative.append(value / mean if mean > 0 else 1.0)
            self.mean[k] = mean + rate * (value - mean) if mean > 0 else value
        return float(np.mean(relative)), most, in_full, self.rank.p_value(in_full), part


def drawn(rng, rows):
    """Parts of many units, some unknown, some rows altogether."""
    values = rng.lognormal(size=(rows, PARTS)) * 10.0 ** np.arange(-2, PARTS - 2)
    values[rng.random((rows, PARTS)) < 0.1] = -1.0
    values[rng.random(rows) < 0.02] = -1.0
    return values.astype(np.float32)


def test_levels_are_ranked_each_for_itself_as_the_mandatory_answer_is(programs):
    rng, state = np.random.default_rng(0), ranks.init(LEVELS, PARTS, DISTANCES)
    references = [Reference() for _ in range(LEVELS)]
    for turn in range(8):
        level = (0, 1, 1)[turn % 3]
        rows = drawn(rng, ROWS) * (1 + 20 * (turn == 6))
        state, got = programs[level](state, rows)
        wanted = [references[level](row) for row in rows.tolist()]
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


def test_weights_that_grow_are_scaled_back_and_counts_halved(programs):
    state = ranks.init(LEVELS, PARTS, DISTANCES)
    rng = np.random.default_rng(1)
    for _ in range(4):
        state, _ = programs[1](state, drawn(rng, ROWS))
    known = np.array(state.known)
    known[1, :, [ranks.WEIGHT, ranks.TOTAL]] *= 1e8
    known[1, :, ranks.BELOW :] *= 1e8
    counts = np.array(state.counts.rows)
    counts[0, 1, : PARTS * usual.BINS] *= 1e8
    total = float(state.total[1])
    counts[0, 1, PARTS * usual.BINS :] *= 65_000 / total
    heavy = state._replace(
        known=jnp.asarray(known),
        counts=type(state.counts)(jnp.asarray(counts)),
        total=state.total.at[1].set(65_000.0),
    )
    usual_one, heavy_one = state, heavy
    for _ in range(3):
        rows = drawn(rng, ROWS)
        usual_one, wanted = programs[1](usual_one, rows)
        heavy_one, got = programs[1](heavy_one, rows)
        np.testing.assert_allclose(got[:, 1:3], wanted[:, 1:3], atol=0.02)
        np.testing.assert_allclose(got[:, 3], wanted[:, 3], atol=0.05)
    assert float(heavy_one.known[1, :, ranks.WEIGHT].max()) < usual.RESCALE_AT
    assert 30_000 < float(heavy_one.total[1]) < 35_000


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30])
def test_no_value_is_too_small_or_too_large(programs, value):
    state, _ = programs[0](
        ranks.init(LEVELS, PARTS, DISTANCES), drawn(np.random.default_rng(2), ROWS)
    )
    _, got = programs[0](state, np.full((ROWS, PARTS), value, np.float32))
    assert np.isfinite(got).all()
