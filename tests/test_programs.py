import gc
import re
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import learner, model, runtime
from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.settings import BLOCK, Level, Model

# As in test_model.py, so that the programs are on disk already.
LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)
CHANNELS = 2


@pytest.fixture(scope="module")
def banks():
    """Banks of a few streams and of many, compiled."""
    made = [Engine(streams, CHANNELS, SETTINGS) for streams in (3, 48)]
    for engine in made:
        list(engine.warm_up(learning=False))
    return made


def test_each_program_is_one_kernel(banks):
    for program in banks[0].programs.run.values():
        entry = re.search(r"\nENTRY .*?\n}", program.as_text(), re.DOTALL)
        assert entry
        kinds = re.findall(r" = .* ([a-z-]+)\(", entry[0])
        work = [kind for kind in kinds if kind not in ("parameter", "get-tuple-element", "tuple")]
        assert work == ["call"]
        assert 'xla_cpu_small_call="true"' in entry[0].splitlines()[-2]


def test_what_cannot_be_part_of_a_kernel_is_refused_when_it_is_compiled():
    lowered = jax.jit(runtime.one_kernel(jnp.sort)).lower(jnp.arange(8.0))
    with pytest.raises(RuntimeError, match="kernel"):
        lowered.compile(runtime.WITHIN_A_KERNEL)


def test_what_a_call_copies_and_allocates_does_not_grow_with_the_bank(banks):
    few, many = banks
    for level in range(len(LEVELS)):
        temporary, arguments = (
            [
                getattr(engine.programs.run[level].memory_analysis(), f"{what}_size_in_bytes")
                for engine in banks
            ]
            for what in ("temp", "argument")
        )
        assert temporary[0] == pytest.approx(temporary[1], rel=0.02)
        assert temporary[0] < 1 << 20
        assert arguments[1] > 10 * arguments[0]
        # All streams are changed in place: what comes out anew are the outputs of a block.
        analysis = many.programs.run[level].memory_analysis()
        assert analysis.output_size_in_bytes - analysis.alias_size_in_bytes < 1 << 16


def test_the_state_of_a_bank_stays_where_it_is(banks):
    engine = banks[0]
    block = engine.programs.no_block()
    block[:5, 0], block[:, 1:] = (0, 1, 2, 1, 0), 1.0
    places = [array.unsafe_buffer_pointer() for array in engine.store.apart]
    for level in (0, 1, 2, 2, 0):
        assert engine.run(level, block).shape[0] == 5
        assert [array.unsafe_buffer_pointer() for array in engine.store.apart] == places


@pytest.mark.slow
def test_a_large_bank_gathers_gradients_before_a_step():
    streams = 2 * learner.SHARE + 1
    engine = Engine(streams, CHANNELS, SETTINGS)
    assert list(engine.warm_up([2]))[-1] == "learn"
    assert engine.programs.gather
    block, rng = engine.programs.no_block(), np.random.default_rng(0)
    block[:, 0], block[:, 1 + CHANNELS :] = np.arange(BLOCK) % 3, 1.0
    for _ in range(12):
        block[:, 1 : 1 + CHANNELS] = rng.normal(size=(BLOCK, CHANNELS))
        engine.run(2, block)
    before, gathered = np.asarray(engine.numbers), engine.bank.slope
    assert gathered[:3].any(axis=1).all()
    for stream, moves in ((0, False), (1, False), (2, True), (0, False)):
        assert engine.learn(stream)
        assert (not np.array_equal(engine.numbers, before)) == moves
        before = np.asarray(engine.numbers)
        # What was gathered of this stream is spent, that of the others is not.
        gathered[stream] = 0.0
        np.testing.assert_array_equal(engine.bank.slope, gathered)


@pytest.mark.parametrize("encoder", ["delta", "attention"])
def test_a_step_leaves_the_bank_as_it_was_but_for_what_is_made_of_parameters(encoder):
    engine = Engine(2, CHANNELS, replace(SETTINGS, encoder=encoder))
    for _ in engine.warm_up([2]):
        pass
    block, rng = engine.programs.no_block(), np.random.default_rng(0)
    block[:, 0], block[:, 1 + CHANNELS :] = np.arange(BLOCK) % 2, 1.0
    for _ in range(12):
        block[:, 1 : 1 + CHANNELS] = rng.normal(size=(BLOCK, CHANNELS))
        engine.run(2, block)
    before = engine.bank
    assert engine.learn(0)
    after, wanted = engine.bank, jax.jit(model.anew)(engine.params, before)
    assert (before.slope[1] == after.slope[1]).all()
    names = jax.tree_util.tree_leaves_with_path(wanted._replace(slope=after.slope))
    for (path, leaf), got in zip(names, jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(
            got, leaf, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path)
        )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.cache, after.cache)
    assert any(jax.tree.leaves(moved)) == (encoder == "attention")


def test_answers_leave_nothing_behind_in_memory(banks):
    engine = banks[0]
    controller = Controller(3, CHANNELS, SETTINGS, engine=engine)
    rng = np.random.default_rng(0)

    def answer(samples):
        waiting = []
        for n in range(samples):
            values = rng.normal(size=CHANNELS)
            waiting.append(controller.arrive(n % 3, values))
            if len(waiting) == BLOCK:
                for estimate in controller.refine(n // BLOCK % 3, waiting):
                    controller.settle(estimate, float(n), values)
                waiting = []

    # Until every window of the feedback's memory is full it grows.
    answer(40 * BLOCK)
    gc.collect()
    tracemalloc.start()
    answer(10 * BLOCK)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    answer(10 * BLOCK)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 64 * 1024
