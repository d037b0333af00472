import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from adaptive import isolation
from adaptive.engine import Engine
from adaptive.frames import decode, encode
from adaptive.isolation import Lost, Process, Remote
from adaptive.rehearsal import SIZES
from adaptive.settings import BLOCK, BLOCKS, Level, Model, empty_block

# As in test_model.py, so that the programs are on disk already.
LEVELS = (Level("trunk"), Level("recall-512", 512), Level("full", 512, 16))
SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, levels=LEVELS
)
CHANNELS, FULL = 2, 2


@pytest.fixture(scope="module")
def process():
    process = Process()
    yield process
    process.close()
    assert process.child.returncode == 0


def blocks(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        block = np.ones((32, 1 + 2 * CHANNELS), np.float32)
        block[:, 0], block[:, 1 : 1 + CHANNELS] = 0, rng.normal(size=(32, CHANNELS))
        yield block


def part(block, many):
    """The first samples of a block."""
    block = block.copy()
    block[many:, 0] = -1.0
    return block


@pytest.mark.parametrize(
    "thing",
    [
        None,
        [1, "two", 3.0, {"four": b"5"}],
        np.arange(6.0).reshape(2, 3),
        np.array(7, np.int8),
        np.zeros((0, 4), np.float32),
        {"a": np.array([True, False]), "b": np.array([np.nan, np.inf])},
    ],
)
def test_what_is_sent_comes_out_as_it_was(thing):
    got = decode(encode(thing))
    np.testing.assert_equal(got, thing)
    if isinstance(thing, np.ndarray):
        assert (got.dtype, got.shape) == (thing.dtype, thing.shape)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(TypeError, match="cannot be sent"):
        encode(object())


@pytest.mark.slow
def test_an_engine_in_another_process_does_what_one_here_does(process):
    here, there = Engine(1, CHANNELS, SETTINGS), Remote(process, 1, CHANNELS, SETTINGS)

    async def main():
        steps = []
        costs, learn_cost = await there.prepare(steps.append)
        assert steps == list(here.warm_up())
        assert here.outputs() == there.outputs()
        assert [tuple(cost) for cost in costs] == [SIZES] * 3
        assert learn_cost > 0
        for n, block in enumerate(blocks(6)):
            level = min(n, FULL)
            got = await there.beside("run", level, block)
            np.testing.assert_array_equal(got, here.run(level, block))
            assert await there.beside("learn", 0) == here.learn(0)
            if n == 3:
                await there.beside("forget", [0])
                here.forget([0])

    asyncio.run(main())
    # The same state, and it can be taken back and forth.
    one, other = here.arrays(), there.arrays()
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert asyncio.run(there.beside("keep")).keys() == one.keys()
    for name, array in one.items():
        content = array.tobytes()
        got = b"".join(
            asyncio.run(there.beside("piece", name, start, 5000)).tobytes()
            for start in range(0, len(content), 5000)
        )
        assert got == content
    again = Remote(process, 1, CHANNELS, SETTINGS)
    again.load(one)
    asyncio.run(again.prepare())
    (block,) = blocks(1)
    np.testing.assert_array_equal(again.run(0, part(block, 5)), here.run(0, part(block, 5)))


@pytest.mark.slow
def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(process):
    engine = Remote(process, 1, CHANNELS, SETTINGS)
    asyncio.run(engine.prepare())
    first, second = blocks(2)
    twin = Engine(1, CHANNELS, SETTINGS)
    list(twin.warm_up())
    twin.run(0, first)

    async def main():
        asking = asyncio.create_task(engine.beside("run", 0, first))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        # Read without waiting in the event loop, as a last checkpoint is.
        assert engine.run(0, part(second, 7)).shape[0] == 7
        asking = asyncio.create_task(engine.beside("run", 0, first))
        await asyncio.sleep(0)
        asking.cancel()
        return await engine.beside("run", 0, part(second, 3))

    got = asyncio.run(main())
    twin.run(0, part(second, 7))
    twin.run(0, first)
    np.testing.assert_array_equal(got, twin.run(0, part(second, 3)))


@pytest.mark.slow
def test_what_fails_there_is_told_here_and_it_goes_on(process):
    engine = Remote(process, 1, CHANNELS, SETTINGS)

    async def main():
        await engine.beside("make", 1, CHANNELS, asdict(SETTINGS))
        with pytest.raises(RuntimeError, match="KeyError"):  # not compiled
            await engine.beside("run", 0, np.zeros((32, 5), np.float32))

    asyncio.run(main())
    with pytest.raises(RuntimeError, match="warm_up"):
        engine.learn(0)
    assert engine.arrays()


@pytest.mark.slow
def test_a_process_that_is_killed_is_missed_at_once():
    process = Process()
    engine = Remote(process, 1, CHANNELS, SETTINGS)

    async def main():
        waiting = asyncio.create_task(engine.beside("costs"))  # nothing is compiled: it fails
        with pytest.raises(RuntimeError):
            await waiting
        os.kill(process.child.pid, signal.SIGKILL)
        with pytest.raises(Lost, match="ended with code -9|closed its socket"):
            await asyncio.wait_for(engine.beside("learn", 0), 10.0)

    asyncio.run(main())
    with pytest.raises(Lost):
        engine.arrays()
    process.close()
    assert process.child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_that_ends_while_nothing_is_asked_of_it_is_missed_at_once():
    process, told = Process(), []
    engine, process.gone = Remote(process, 1, CHANNELS, SETTINGS), told.append

    async def main():
        assert await engine.beside("make", 1, CHANNELS, asdict(SETTINGS))
        os.kill(process.child.pid, signal.SIGKILL)
        async with asyncio.timeout(10.0):
            while not told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(told) == 1
    assert isinstance(told[0], Lost)
    process.close()


@pytest.mark.slow
def test_the_process_ends_when_the_one_that_started_it_dies_whatever_it_does():
    code = (
        "import os, signal, sys; from adaptive.isolation import Process; p = Process(); "
        "print(p.child.pid, flush=True); os.kill(p.child.pid, signal.SIGSTOP); "
        "sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    os.kill(pid, signal.SIGCONT)
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it goes on")


@pytest.mark.slow
def test_a_process_that_hangs_is_missed_and_killed(monkeypatch):
    monkeypatch.setattr(isolation, "SILENT", 0.5)
    monkeypatch.setattr(isolation, "ENDING", 0.5)
    process = Process()
    os.kill(process.child.pid, signal.SIGSTOP)
    with pytest.raises(Lost, match="said nothing"):
        Remote(process, 1, CHANNELS, SETTINGS).arrays()
    process.close()
    assert process.child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_that_stops_within_a_message_keeps_nobody_waiting_for_ever(monkeypatch):
    monkeypatch.setattr(isolation, "STALL", 1)
    process = Process()
    os.kill(process.child.pid, signal.SIGSTOP)
    engine = Remote(process, 1, CHANNELS, SETTINGS)
    with pytest.raises(Lost, match="stopped for 1 s within a message"):
        asyncio.run(engine.beside("load", {"more": np.zeros(10**7)}))  # than a socket holds
    process.close(0.0)


@pytest.mark.slow
def test_a_folder_of_the_same_name_does_not_stand_in_for_ours(tmp_path, monkeypatch):
    (tmp_path / "adaptive").mkdir()
    (tmp_path / "adaptive" / "__init__.py").write_text("raise ImportError('not ours')")
    # As from a console script, whose path has no working directory in it.
    monkeypatch.setattr("sys.path", [path for path in sys.path if path] + [os.getcwd()])
    monkeypatch.chdir(tmp_path)
    process = Process()
    engine = Remote(process, 1, CHANNELS, SETTINGS)
    assert asyncio.run(engine.beside("make", 1, CHANNELS, asdict(SETTINGS)))
    process.close()


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_started_it():
    process = Process()
    engine = Remote(process, 1, CHANNELS, SETTINGS)
    asyncio.run(engine.beside("make", 1, CHANNELS, asdict(SETTINGS)))
    os.kill(process.child.pid, signal.SIGINT)  # Ctrl-C reaches both; only the agent heeds it
    os.kill(process.child.pid, signal.SIGTERM)
    process.line.close()
    assert process.child.wait(30.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["outputs", "warm_up"])
def test_it_ends_without_a_word_when_nobody_waits_for_its_answer(asked, capfd, monkeypatch):
    monkeypatch.setattr(isolation, "ENDING", 120.0)  # what it compiles, it compiles to the end
    process = Process()
    engine = Remote(process, 1, CHANNELS, SETTINGS)
    asyncio.run(engine.beside("make", 1, CHANNELS, asdict(SETTINGS)))
    process._send(engine.number, asked, ())
    process.close()
    assert process.child.returncode == 0
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 40])
def test_after_the_start_nothing_is_compiled_whatever_an_agent_asks_for(process, streams):
    there = Remote(process, streams, CHANNELS, SETTINGS)

    async def main():
        await there.prepare()
        levels = len(SETTINGS.ladder())
        for level in range(levels):
            for many in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, BLOCKS * BLOCK):
                block = empty_block(CHANNELS, many)
                block[:many], block[:many, 0] = 1.0, np.arange(many) % streams
                assert len(await there.beside("run", level, block)) == many
        for n in range(8):  # of many streams some only gather
            await there.beside("learn", n % streams)
        await there.beside("forget", [streams - 1])
        await there.beside("run", 0, block)
        kept = await there.beside("keep")
        for name in kept:
            await there.beside("piece", name, 0, 2**30)
        arrays = await there.beside("arrays")
        assert await there.beside("compiled") == {}
        full, waited, _ = await there.beside("collections")
        assert full == waited == 0
        again = Remote(process, streams, CHANNELS, SETTINGS)
        again.load(arrays)
        await again.prepare()  # as after a restart, where the state comes before the programs
        await again.beside("load", arrays)
        await again.beside("run", 0, block)
        await again.beside("learn", 0)
        assert await again.beside("compiled") == {}

    asyncio.run(main())
