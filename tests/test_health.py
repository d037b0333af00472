import asyncio
import gc
import json
import logging
from math import inf

import pytest

from adaptive import health, runtime
from adaptive.bank import Bank, Track
from adaptive.controller import Controller
from adaptive.decision import Settings
from adaptive.engine import Engine
from adaptive.feedback import Pending
from adaptive.governor import Governor
from adaptive.health import Health
from adaptive.isolation import Lost
from adaptive.loop import Loop
from adaptive.memory import Memory
from adaptive.settings import Model
from sensors.sample import Stream
from sensors.transforms import Chain

SMALL = Model(memory_samples=512, window_samples=16, dim=8, heads=2)  # as in test_agent.py


class Ill(Engine):
    """An engine whose process has compiled something, or is gone."""

    lost = False
    said = ()

    async def beside(self, name, *args):
        if self.lost:
            raise Lost("it is gone")
        return (3, 1, 2.5) if name == "collections" else dict(self.said)


@pytest.fixture(scope="module")
def loop():
    stream, chain = Stream("s", ("a", "b"), ("", ""), 10.0), Chain(())
    bank = Bank(Controller(1, 2, SMALL, engine=Ill(1, 2, SMALL)), Governor(Settings()))
    track = Track(stream, bank, 0, 0.05, chain, chain.init(stream), Pending(64))
    return Loop([], {"s": track}, [bank])


def run(virtual_time, one, seconds):
    async def main():
        running = asyncio.create_task(one.run())
        await asyncio.sleep(seconds)
        assert not gc.isenabled()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert gc.isenabled()

    virtual_time.run(main())


@pytest.mark.slow
def test_what_was_compiled_after_the_start_is_warned_of_once(loop, virtual_time, caplog):
    engine, one = loop.banks[0].controller.engine, Health(loop, True, Memory(inf))
    engine.said = {"jit(late)": 2}
    with caplog.at_level(logging.WARNING):
        run(virtual_time, one, 3.5 * health.ASK)
    assert caplog.text.count("jit(late) 2") == 1
    assert one.worker == (3, 1, 2.5)
    said = dict(one.lines())
    assert said["compiled"] == "jit(late) 2 after the start"
    assert said["of models"] == (
        "3 full collections, 1 while something waited, the longest took 2.5 ms"
    )
    plain = json.loads(json.dumps(one.snapshot(), allow_nan=False))
    assert plain["compiled"] == {"jit(late)": 2}
    assert plain["collections_models"]["waited"] == 1
    assert plain["collections"]["full"] == 0
    assert plain["stalls"] == 0


@pytest.mark.slow
def test_an_agent_whose_models_are_gone_says_what_it_knows(loop, virtual_time, monkeypatch):
    one = Health(loop, True, Memory(inf))
    monkeypatch.setattr(loop.banks[0].controller.engine, "lost", True)
    told = []
    monkeypatch.setattr(loop, "renew", told.append)
    run(virtual_time, one, 2.5 * health.ASK)
    assert one.worker is None
    assert len(told) == 2
    assert "of models" not in dict(one.lines())
    assert dict(one.lines())["compiled"] == "nothing after the start"


def test_what_never_ran_can_be_told_too():
    one = Health(Loop([], {}, []), False, Memory(inf))
    assert json.loads(json.dumps(one.snapshot(), allow_nan=False))["lag_p50_ms"] is None


def test_a_compilation_is_heard_of():
    import jax

    runtime.settle()
    jax.jit(lambda x: 3.0 * x + 1.0)(2.0)
    assert sum(runtime.compiled().values()) == 1
    assert "lambda" in next(iter(runtime.compiled()))
    runtime.settle()
    assert runtime.compiled() == {}
