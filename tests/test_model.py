import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import drift, settings
from adaptive.controller import Controller
from adaptive.programs import side_by_side
from adaptive.settings import Level, Model

LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)
CHANNELS, FULL = 2, 2


@pytest.fixture(scope="module")
def programs():
    controller = Controller(2, CHANNELS, SETTINGS)
    assert [level.name for level in controller.levels] == ["trunk", "recall-512", "full"]
    for _ in controller.engine.warm_up():
        pass
    return controller


@pytest.fixture
def fresh(programs):
    """Makes controllers that have seen nothing, with an encoder that has something to say."""
    rng = np.random.default_rng(9)
    head = rng.normal(0, 0.3, programs.engine.params.encoder.head.shape)

    def make():
        controller = Controller(2, CHANNELS, SETTINGS)
        controller.engine.take_programs(programs.engine)
        params = controller.engine.params
        encoder = params.encoder._replace(head=jnp.asarray(head, jnp.float32))
        controller.engine.numbers = side_by_side(params._replace(encoder=encoder))
        return controller

    return make


def chaos(samples, seed=0):
    """Two channels of a logistic map: predictable, but by no linear forecaster. [N, 2] float64."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.2, 0.8, (samples, CHANNELS))
    for n in range(1, samples):
        values[n] = 3.9 * values[n - 1] * (1 - values[n - 1])
    return values + rng.normal(0, 0.005, values.shape)


def answers(controller, values, levels=FULL, sizes=32):
    """Everything that is estimated of a stream, with so many samples in each call."""
    levels = np.broadcast_to(levels, len(values))
    estimates, first = [], 0
    while first < len(values):
        many = min(sizes, len(values) - first)
        samples = [controller.arrive(0, x) for x in values[first : first + many]]
        estimates += controller.refine(int(levels[first]), samples)
        first += many
    return estimates


def flat(estimate):
    """All numbers of an estimate."""
    numbers = [estimate.index, estimate.level, *estimate.surprise]
    arrays = (estimate.forecast, estimate.spread, *estimate.explanation[:-1], estimate.loss)
    return np.concatenate([numbers, *(np.ravel(a) for a in arrays)]).astype(np.float64)


def all_finite(controller, estimates):
    assert all(np.isfinite(flat(estimate)).all() for estimate in estimates)
    return state_is_finite(controller)


def state_is_finite(controller):
    """All of it, but values as they were measured."""
    bank = controller.engine.bank
    bank = bank._replace(values=None, coarse=bank.coarse._replace(values=None))
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bank))


@pytest.mark.parametrize("changed", [70, 96, 117])
def test_no_answer_depends_on_a_later_sample_of_the_stream_or_of_the_call(fresh, changed):
    values, other = chaos(160), chaos(160)
    # Seen for the first time late in a call, far from everything else.
    values[:changed, 1] = other[:changed, 1] = np.nan
    values[changed:] += 1000.0
    other[changed:] = np.nan
    got, wanted = answers(fresh(), values), answers(fresh(), other)
    for a, b in zip(got[:changed], wanted[:changed], strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))
    assert not np.array_equal(flat(got[changed]), flat(wanted[changed]))


def test_a_call_with_many_samples_equals_as_many_calls_bit_by_bit(fresh):
    values = chaos(128)
    values[40:50, 0] = np.nan
    values[60:64] = np.nan
    one, many = fresh(), fresh()
    for a, b in zip(answers(one, values, sizes=1), answers(many, values, sizes=32), strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))
    pairs = zip(*(jax.tree.leaves(c.engine.bank) for c in (one, many)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_missing_values_never_make_anything_that_is_not_finite(fresh, share):
    values = chaos(320)
    values[np.random.default_rng(1).random(values.shape) < share] = np.nan
    values[100:170] = np.nan  # a gap longer than every window
    values[::31, 0] = np.inf
    controller = fresh()
    assert all_finite(controller, answers(controller, values))


def test_a_constant_stream_is_foreseen_and_nothing_about_it_is_strange(fresh):
    values = np.full((320, CHANNELS), 5.0)
    controller = fresh()
    estimates = answers(controller, values)
    assert all_finite(controller, estimates)
    np.testing.assert_allclose(estimates[-1].forecast, 5.0, rtol=1e-6)
    assert estimates[-1].surprise.relative == 1.0
    assert estimates[-1].surprise.above < 1.0
    # A step out of it is strange, and does no lasting harm.
    after = answers(controller, np.full((64, CHANNELS), 6.0))
    assert all_finite(controller, after)
    assert after[0].surprise.relative >= 1.0
    assert max(e.surprise.above for e in after) > 8.0
    np.testing.assert_allclose(after[-1].forecast, 6.0, rtol=0.05)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30, 1e300])
def test_huge_and_tiny_scales_stay_finite(fresh, scale):
    values = chaos(192) * scale
    values[150] *= 1e6 if scale < 1e250 else -1
    controller = fresh()
    with np.errstate(over="ignore"):  # forecasts are float32
        estimates = answers(controller, values)
    assert state_is_finite(controller)
    for e in estimates:
        assert np.isfinite(e.surprise).all()
        if scale < 1e20:
            assert np.isfinite(flat(e)).all()


@pytest.mark.parametrize("offset", [1e12, -1e12, 2.0**-40])
def test_an_offset_changes_nothing_but_the_forecasts_level(fresh, offset):
    values = np.round(chaos(160) * 1024) / 1024  # exact beside 1e12, whose steps are 2^-13
    if abs(offset) < 1:
        values *= 2.0**-30
    got, wanted = answers(fresh(), values + offset), answers(fresh(), values)
    for a, b in zip(got, wanted, strict=True):
        forecast = np.zeros((2, CHANNELS), np.float32)
        np.testing.assert_array_equal(
            flat(a._replace(forecast=forecast)), flat(b._replace(forecast=forecast))
        )
        np.testing.assert_allclose(a.forecast, b.forecast + offset, rtol=1e-6)


@pytest.mark.slow
def test_recall_foresees_what_no_linear_forecaster_does_and_is_served(fresh):
    # One of three patterns of noise after another, in no order.
    rng = np.random.default_rng(4)
    patterns = rng.normal(size=(3, 40, CHANNELS))
    values = np.concatenate([patterns[k] for k in rng.integers(0, 3, 40)])
    loss = answers(fresh(), values, levels=1)[-1].loss
    kinds = dict(zip(settings.KINDS, loss.tolist(), strict=True))
    assert kinds["recall"] < 0.8 * kinds["trunk"]
    assert kinds["served"] < 0.9 * kinds["trunk"]
    assert kinds["served"] < 1.02 * min(kinds[name] for name in kinds)


def test_changes_of_level_leave_the_cache_as_if_always_at_full(fresh):
    values = chaos(256)
    levels = np.repeat([0, 2, 1, 2, 0, 1, 0, 2], 32)
    changing, still = fresh(), fresh()
    assert all_finite(changing, answers(changing, values, levels))
    answers(still, values)
    caches = (jax.tree.leaves(one.engine.bank.cache) for one in (changing, still))
    for got, wanted in zip(*caches, strict=True):
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(changing.engine.bank.values.rows, still.engine.bank.values.rows)


def test_after_a_change_losses_are_those_of_the_new_stream(fresh):
    rng, change = np.random.default_rng(3), 1200
    values = 0.1 * rng.normal(size=(change + 80, CHANNELS))
    values[change:] *= 8.0
    controller = fresh()
    answers(controller, values, levels=0)
    bank = controller.engine.bank
    since = int(bank.drift.since[0])
    assert drift.FRESH <= since < drift.FRESH + 80
    error = (values[1:] - values[:-1]) ** 2 / bank.glitch.variance[0]
    new = error[change:].mean()
    loss = bank.loss[0, settings.KINDS.index("persistence"), 0].mean()
    assert 0.5 * new < loss < 1.5 * new
    # As an average of all samples it would be far from there.
    assert error.mean() < 0.2 * new
