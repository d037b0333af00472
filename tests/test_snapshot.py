import asyncio

import numpy as np
import pytest

from adaptive import snapshot
from adaptive.bank import Bank
from adaptive.controller import Controller
from adaptive.decision import Settings as GovernorSettings
from adaptive.engine import Engine
from adaptive.governor import Governor
from adaptive.settings import Model
from adaptive.snapshot import Snapshot, filled, leaves

# As in test_agent.py, so that the programs are on disk already.
SMALL = Model(memory_samples=512, window_samples=16, dim=8, heads=2)


class Far(Engine):
    """An engine that takes its time, and writes down what it was when it was copied."""

    async def beside(self, name, *args):
        await asyncio.sleep(0)
        if name == "keep":
            self.wanted, self.asked = self.arrays(), []
        given = getattr(self, name)(*args)
        if name == "piece":
            self.asked.append(len(given))
        return given


@pytest.fixture(scope="module")
def bank():
    engine = Far(1, 2, SMALL)
    assert list(engine.warm_up())
    return Bank(Controller(1, 2, SMALL, engine=engine), Governor(GovernorSettings()))


def refine(bank, rng):
    bank.controller.refine(0, [bank.controller.arrive(0, rng.normal(size=2))])


@pytest.mark.slow
def test_a_snapshot_is_of_one_moment_whatever_the_model_does_meanwhile(bank, monkeypatch):
    monkeypatch.setattr(snapshot, "PIECE", 1000)
    rng, model, done = np.random.default_rng(0), asyncio.Lock(), 0
    for _ in range(50):
        refine(bank, rng)

    async def main():
        nonlocal done
        taken = Snapshot([bank], {})
        taking = asyncio.create_task(taken.take_beside(model, lambda: False))
        while not taking.done():
            async with model:
                refine(bank, rng)
            done += 1
            await asyncio.sleep(0)
        await taking
        return taken

    taken = asyncio.run(main())
    assert done > 100  # many pieces, and the model at work between any two
    engine = bank.controller.engine
    of_engine = {
        name.removeprefix("bank.0."): array
        for name, array in taken.arrays.items()
        if ".member." not in name
    }
    assert of_engine.keys() == engine.wanted.keys()
    for name, array in engine.wanted.items():
        np.testing.assert_array_equal(of_engine[name], array, name)
        assert (of_engine[name].dtype, of_engine[name].shape) == (array.dtype, array.shape)
    assert max(engine.asked) == 1000
    assert not any(array.size for array in engine._kept.values())  # the copy is gone


@pytest.mark.slow
def test_a_snapshot_beside_the_work_is_what_one_at_once_is(bank):
    whole, beside = Snapshot([bank], {}), Snapshot([bank], {})
    whole.take()
    asyncio.run(beside.take_beside(asyncio.Lock(), lambda: False))
    assert beside.header == whole.header
    assert beside.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(beside.arrays[name], array, name)


@pytest.mark.slow
def test_a_piece_gives_way_to_what_waits_but_not_for_ever(bank, virtual_time, monkeypatch):
    monkeypatch.setattr(snapshot, "PIECE", 2**30)  # an array is a piece

    async def seconds(busy):
        clock = asyncio.get_running_loop().time
        before = clock()
        await Snapshot([bank], {}).take_beside(asyncio.Lock(), busy)
        return clock() - before

    assert virtual_time.run(seconds(lambda: False)) == pytest.approx(0.0, abs=1e-6)
    arrays = sum(bool(array.size) for array in bank.controller.engine.arrays().values())
    wait = snapshot.PATIENCE * snapshot.GLANCE
    assert virtual_time.run(seconds(lambda: True)) == pytest.approx(arrays * wait, rel=1e-6)


def test_what_is_taken_of_nested_tuples_is_put_back_into_others():
    tree = ((1, np.array([2.0, 3.0])), None, 4.5)
    found = dict(leaves(tree))
    other = filled(((0, np.zeros(2)), None, 0.0), found)
    assert other[0][0] == 1
    assert other[1:] == (None, 4.5)
    np.testing.assert_array_equal(other[0][1], [2.0, 3.0])
