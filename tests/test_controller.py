import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from adaptive.controller import MANDATORY, Controller
from adaptive.engine import Engine
from adaptive.rehearsal import SIZES
from adaptive.settings import BLOCK, LADDER, Level, Model

# As in test_model.py, so that the programs are compiled once.
LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)
STREAMS, CHANNELS, FULL = 2, 2, 2


@pytest.fixture(scope="module")
def programs():
    controller = Controller(STREAMS, CHANNELS, SETTINGS)
    names = list(controller.engine.warm_up())
    assert names == [*(level.name for level in controller.levels), "learn"]
    return controller


@pytest.fixture
def fresh(programs):
    def make():
        controller = Controller(STREAMS, CHANNELS, SETTINGS)
        controller.engine.take_programs(programs.engine)
        return controller

    return make


def some(samples, seed=0):
    rng = np.random.default_rng(seed)
    values = np.sin(np.arange(samples)[:, None] / (5.0, 8.0)) + rng.normal(0, 0.1, (samples, 2))
    values[20:23, 1] = np.nan
    return values


def same(a, b):
    """Whether two estimates or answers are the same, bit by bit."""
    leaves, others = (jax.tree.flatten(x) for x in (a, b))
    assert leaves[1] == others[1]
    for x, y in zip(leaves[0], others[0], strict=True):
        np.testing.assert_array_equal(x, y)


def lived(controller, values, stream=0, first=0, learn=False, level=FULL):
    """Take samples through one stream, one by one; return its answers."""
    answers = []
    for n, x in enumerate(values, first):
        (estimate,) = controller.refine(level, [controller.arrive(stream, x)])
        answers.append(controller.settle(estimate, float(n), x))
        if n % 7 == 0:
            controller.label(stream, np.array([n]), n % 2)
        if learn and controller.learning_due() is not None:
            assert controller.learn(stream)
    return answers


def test_the_mandatory_estimate_is_the_difference_to_the_last_value_in_usual_ones(fresh):
    values = some(300)
    values[100, 0] = 50.0
    values[200:210] = np.nan
    filled = np.zeros(values.shape, bool)
    filled[50:55, 0] = True
    controller = fresh()
    last, square = np.full(CHANNELS, np.nan), np.zeros(CHANNELS)
    mean = counted = 0
    for n, x in enumerate(values):
        estimate = controller.mandatory(controller.arrive(0, x, filled[n]))
        # By hand: each measured channel's step in root mean squares of its steps so far.
        there = np.isfinite(x)
        last = np.where(np.isnan(last), x, last)
        counts = there & ~filled[n]
        step = np.where(counts, np.abs(x - last), 0.0)
        usual = np.sqrt(square)
        surprise = max(
            (s / u for s, u, c in zip(step, usual, counts, strict=True) if c and u > 0), default=0.0
        )
        step = np.where(usual > 0, np.minimum(step, 10 * usual), step)
        rate = max(1 / (n + 1), 0.002)
        square = np.where(counts, square + rate * (step**2 - square), square)
        last = np.where(there, x, last)
        relative = surprise / mean if mean > 0 else 1.0
        if n < 128 or n % 4 == 0:  # of the later ones a quarter is counted
            counted += 1
            mean = mean + (surprise - mean) / counted if mean > 0 else surprise

        assert (estimate.stream, estimate.index, estimate.level) == (0, n, MANDATORY)
        assert estimate.surprise.relative == pytest.approx(relative, rel=1e-9)
        np.testing.assert_allclose(estimate.forecast, np.tile(last, (2, 1)), rtol=1e-6)
        wanted = np.sqrt(np.outer((1, 2), square))
        np.testing.assert_allclose(estimate.spread, wanted, rtol=1e-5)
        assert estimate.explanation is estimate.loss is None
        assert 0 < estimate.surprise.p_value <= 1


@pytest.mark.slow
def test_streams_of_a_bank_do_not_affect_each_other(fresh):
    values = (some(150, 1), 100 + 5 * some(150, 2))
    together, alone = fresh(), (fresh(), fresh())
    wanted = [lived(alone[s], values[s], s) for s in range(STREAMS)]
    got = [[], []]
    order = np.random.default_rng(3).permutation([0] * 150 + [1] * 150)
    taken = [0, 0]
    for first in range(0, 300, 20):
        some_of_both = []
        for stream in order[first : first + 20]:
            some_of_both.append(together.arrive(int(stream), values[stream][taken[stream]]))
            taken[stream] += 1
        for estimate in together.refine(FULL, some_of_both):
            s, n = estimate.stream, estimate.index
            got[s].append(together.settle(estimate, float(n), values[s][n]))
            if n % 7 == 0:
                together.label(s, np.array([n]), n % 2)
    for s in range(STREAMS):
        assert [a.estimate.index for a in got[s]] == list(range(150))
        for a, b in zip(got[s], wanted[s], strict=True):
            # Labels come at other moments here, by up to a call.
            same(a._replace(event=0.0), b._replace(event=0.0))


@pytest.mark.parametrize("batch", [1, 33, 100, 1000])
def test_several_blocks_at_once_are_the_same_as_one_after_the_other(fresh, batch):
    values = some(170)
    one, several = fresh(), fresh()
    wanted, got = (
        [
            estimate
            for first in range(0, len(values), size)
            for estimate in controller.refine(
                FULL,
                [
                    controller.arrive(n % STREAMS, values[n])
                    for n in range(first, min(first + size, len(values)))
                ],
            )
        ]
        for controller, size in ((one, BLOCK), (several, batch))
    )
    assert len(got) == len(values)
    for a, b in zip(got, wanted, strict=True):
        same(a, b)
    assert one.due == several.due


def test_the_answer_without_a_model_may_be_asked_for_at_any_time_and_changes_nothing(fresh):
    asked, silent, late = fresh(), fresh(), []
    for x in some(300):
        late.append(asked.arrive(0, x))
        asked.mandatory(late[-1])
        asked.refine(0, late[-1:]), silent.refine(0, [silent.arrive(0, x)])
    for queued in late:
        estimate = asked.mandatory(queued)
        assert estimate.index == queued.index
        assert 0 < estimate.surprise.p_value <= 1
    np.testing.assert_equal(asked.snapshot(), silent.snapshot())


def test_a_stream_of_which_the_model_makes_no_numbers_begins_anew_and_others_go_on(fresh):
    values = some(80)
    broken, plain = fresh(), fresh()
    for controller in (broken, plain):
        lived(controller, values[:40])
        lived(controller, values[:40], stream=1)
    arrays = broken.engine.arrays()
    for name, array in arrays.items():
        if "loss" in name:
            arrays[name] = array = np.array(array)
            array[0] = np.nan
    broken.engine.load(arrays)
    taken = [broken.arrive(n, values[40]) for n in (1, 0)]
    sound, unsound = broken.refine(FULL, taken)
    assert (sound.level, unsound.level) == (FULL, MANDATORY)
    same(unsound, broken.mandatory(taken[1]))
    assert broken.unsound == {0}
    (same_sample,) = plain.refine(FULL, [plain.arrive(1, values[40])])
    same(sound, same_sample)
    # It is as if nothing had been there before; of the other everything is.
    new = fresh()
    both = [one.refine(FULL, [one.arrive(0, values[41])])[0] for one in (broken, plain)]
    assert not broken.unsound
    assert both[0].level == both[1].level == FULL
    for place in ("count", "loss"):
        got, first = (getattr(one.engine.bank, place)[0] for one in (broken, new))
        assert np.isfinite(got).all()
        if place == "count":
            assert got == first + 1
    others = lived(broken, values[41:], stream=1), lived(plain, values[41:], stream=1)
    same(*others)


@pytest.mark.slow
def test_nothing_compiles_after_the_warm_up(fresh):
    controller = fresh()
    compiled = []

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.jit(lambda x: x + len(compiled))(np.zeros(3))
    assert compiled  # the listener hears
    compiled.clear()
    values = some(100)
    for level in range(len(controller.levels)):
        lived(controller, values, first=100 * level, learn=True, level=level)
    samples = [controller.arrive(1, x) for x in values[:50]]
    controller.refine(1, samples[:32])
    controller.refine(2, samples[32:])
    arrays, header = controller.snapshot()
    controller.restore(arrays, header)
    lived(controller, values, stream=1, first=50, learn=True)
    assert compiled == []


def test_costs_are_measured_without_learning_anything(fresh):
    controller = fresh()
    lived(controller, some(40))
    before = controller.snapshot()
    costs = controller.engine.costs()
    assert controller.engine.learn_cost() > 0
    assert [sorted(cost) for cost in costs] == [list(SIZES)] * len(controller.levels)
    assert all(seconds > 0 for cost in costs for seconds in cost.values())
    after = controller.snapshot()
    for name, array in before[0].items():
        np.testing.assert_array_equal(array, after[0][name], err_msg=name)
    assert before[1] == after[1]


@pytest.mark.slow
def test_a_restored_controller_goes_on_bit_by_bit(fresh):
    values = some(220)
    one, other = fresh(), fresh()
    lived(one, values[:120], learn=True)
    lived(one, values[:60], stream=1)
    arrays, plain = one.snapshot()
    header = json.loads(json.dumps(plain, allow_nan=False))
    assert all(array.dtype != object for array in arrays.values())
    other.restore({name: array.copy() for name, array in arrays.items()}, header)
    assert other.due == one.due
    for s, first in ((0, 120), (1, 60)):
        got, wanted = (lived(c, values[first:], s, first, learn=s == 0) for c in (other, one))
        for a, b in zip(got, wanted, strict=True):
            same(a, b)
    for name, array in one.snapshot()[0].items():
        np.testing.assert_array_equal(array, other.snapshot()[0][name], err_msg=name)
    # The snapshot is a copy: what came after did not change it.
    assert plain == header
    assert header["members"][0]["count"] == 120
    assert other.members[0].mandatory.count == 220


def test_a_sample_that_is_left_out_leaves_no_trace_in_the_model(fresh):
    values = some(70)
    one, other = fresh(), fresh()
    samples = [one.arrive(0, x) for x in values]
    got = one.refine(1, samples[1:])
    assert [estimate.index for estimate in got] == list(range(1, 70))
    other.arrive(0, values[0])
    for n in range(1, 70):
        (estimate,) = other.refine(1, [other.arrive(0, values[n])])
        same(estimate, got[n - 1])


def test_a_step_is_due_for_the_stream_that_has_waited_longest(fresh):
    controller, every = fresh(), SETTINGS.learn_every_samples
    assert controller.learning_due() is None
    controller.refine(0, [controller.arrive(1, np.zeros(2)) for _ in range(every - 1)])
    assert controller.learning_due() is None
    sample = controller.arrive(1, np.ones(2))
    assert controller.learning_due() is None  # it was not taken through the model yet
    controller.refine(0, [sample])
    assert controller.learning_due() == 1
    controller.refine(0, [controller.arrive(0, np.zeros(2)) for _ in range(2 * every)])
    assert controller.learning_due() == 0
    controller.learn(0)
    assert controller.learning_due() == 1
    controller.learn(1)
    assert controller.learning_due() is None


def test_learning_without_its_program_says_so():
    controller = Controller(1, 1, SETTINGS)
    assert controller.engine.learn_cost() == 0.0
    with pytest.raises(RuntimeError, match="warm_up"):
        controller.learn(0)


def test_programs_of_another_shape_are_refused(programs):
    with pytest.raises(ValueError, match="programs are of"):
        Engine(1, CHANNELS, SETTINGS).take_programs(programs.engine)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Model(), [level.name for level in LADDER]),
        (SETTINGS, ["trunk", "recall-512", "full"]),
        (Model(memory_samples=2048), ["trunk", "recall-512", "full"]),
        (Model(memory_samples=512, window_samples=64), ["trunk", "full"]),
        (
            Model(memory_samples=512, window_samples=64, encoder="attention"),
            ["trunk", "recall-512", "full"],
        ),
        (Model(memory_samples=512, window_samples=32, encoder="attention"), ["trunk", "full"]),
    ],
)
def test_no_level_is_larger_than_the_model_and_the_last_one_is_full(settings, names):
    ladder = settings.ladder()
    assert [level.name for level in ladder] == names
    for level in ladder:
        assert level.memory_samples <= settings.memory_samples
        assert level.window_samples <= settings.window_samples
    full = ladder[-1]
    size = settings.memory_samples, settings.window_samples
    assert replace(full, worth=0.0) == Level("full", *size)
    assert len({(level.memory_samples, level.window_samples) for level in ladder}) == len(ladder)
