"""What calls cost, measured at the start."""

import asyncio

import numpy as np
import pytest

from adaptive import rehearsal
from adaptive.engine import Engine
from adaptive.isolation import Process, Remote
from adaptive.rehearsal import REPEATS, SIZES, Laps, calls
from adaptive.settings import Level, Model

# As in test_model.py, so that the programs are on disk already.
LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)
CHANNELS = 2


def test_every_level_and_size_is_measured_as_often_and_every_stream_is_taken_up():
    found = list(calls(3, 50, CHANNELS))
    kinds = [(level, size) for level, size, _ in found]
    assert sorted(kinds) == sorted((v, s) for v in range(3) for s in SIZES for _ in range(REPEATS))
    assert kinds != sorted(kinds)
    for _, size, block in found:
        assert np.count_nonzero(block[:, 0] >= 0) == size
        assert len(block) % 32 == 0
        assert block[:size, 1 + CHANNELS :].all()
    taken = np.concatenate([block[:size, 0] for _, size, block in found])
    np.testing.assert_array_equal(taken, np.arange(len(taken)) % 50)


def test_a_cost_is_the_median_and_never_less_than_that_of_fewer_samples():
    laps = Laps()
    for size, laps_of_it in ((4, (3.0, 2.0, 9.0)), (1, (4.0, 5.0, 1.0)), (8, (6.0,))):
        for lap in laps_of_it:
            laps.add(0, size, lap)
    laps.add(1, 1, 7.0)
    assert laps.costs() == [{1: 4.0, 4: 4.0, 8: 6.0}, {1: 7.0}]


@pytest.fixture(scope="module")
def engine():
    made = Engine(3, CHANNELS, SETTINGS)
    list(made.warm_up(learning=False))
    return made


def test_nothing_is_learned_from_a_rehearsal(engine):
    before = engine.arrays()
    (*_, (level, size, block)) = calls(3, 3, CHANNELS, (5,), 1)
    first = engine.rehearse(level, block)
    assert first.shape[0] == size
    second = engine.rehearse(level, block)  # the copies have moved on
    assert not np.array_equal(first, second)
    engine.costs()
    after = engine.arrays()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    engine.rehearsed()
    np.testing.assert_array_equal(engine.rehearse(level, block), first)
    engine.rehearsed()
    np.testing.assert_array_equal(engine.run(level, block), first)


@pytest.mark.slow
def test_what_is_measured_from_here_has_the_way_there_in_it(monkeypatch):
    monkeypatch.setattr(rehearsal, "REPEATS", 3)
    process = Process()
    try:
        remote = Remote(process, 3, CHANNELS, SETTINGS)

        async def main():
            await remote.prepare()
            paused = []

            async def sleep(seconds, wait=asyncio.sleep):
                paused.append(seconds)
                await wait(0)

            monkeypatch.setattr(asyncio, "sleep", sleep)
            return await remote.rehearse(1e-3), paused

        costs, paused = asyncio.run(main())
    finally:
        process.close()
    assert [tuple(cost) for cost in costs] == [SIZES] * 3
    assert paused.count(1e-3) == 3 * len(SIZES) * REPEATS
