import asyncio
import socket
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from sensors.sample import Feedback, Rejected, Sample, Source, Stream
from sensors.testing import (
    ListSource,
    VirtualTimeLoop,
    check_sink,
    check_source,
    check_transform,
    virtual_run,
)

STREAM = Stream("s", ("x", "y"), ("", ""), 10.0)


def samples(count=20, start=0):
    return [Sample("s", n, n / 10, np.array([n, np.nan])) for n in range(start, start + count)]


def listed(items, streams=(STREAM,)):
    return lambda: ListSource(tuple(streams), tuple(items))


def test_a_good_source_passes():
    items = [*samples(), Feedback("s", 0.3, 1), Rejected("", "malformed", "x"), *samples(5, 20)]
    assert isinstance(listed(items)(), Source)
    check_source(listed(items), repeatable=True)
    check_source(lambda: ListSource((STREAM,), tuple(items), 3600.0), repeatable=True)
    check_source(listed(items), virtual=False)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "must yield samples"),
        ([*samples(3), samples(1)[0]], "count up by one"),
        ([*samples(3), *samples(1, 4)], "count up by one"),
        ([samples(1)[0]._replace(stream="t")], "belong to one of"),
        ([samples(1)[0]._replace(values=np.zeros(3))], "shape"),
        ([samples(1)[0]._replace(values=np.zeros(2, np.float32))], "float64"),
        ([samples(1)[0]._replace(values=np.array([np.inf, 0]))], "finite or NaN"),
        ([samples(1)[0]._replace(time=float("nan"))], "time must be finite"),
        ([samples(2)[0], samples(2)[1]._replace(time=-1.0)], "time must not go back"),
        ([*samples(2), Feedback("t", 0.0, 1)], "feedback must name"),
    ],
)
def test_a_source_that_breaks_the_contract_is_told_how(items, said):
    with pytest.raises(AssertionError, match=said):
        check_source(listed(items))


@pytest.mark.parametrize(
    ("streams", "said"),
    [
        ([], "at least one"),
        ([STREAM, STREAM], "different names"),
        ([Stream("s", ("x",), ())], "one unit"),
    ],
)
def test_streams_must_make_sense_before_the_first_sample(streams, said):
    with pytest.raises(AssertionError, match=said):
        check_source(listed(samples(), streams))


class Erratic(ListSource):
    made = 0

    async def __aiter__(self):
        Erratic.made += 1
        yield samples(1)[0]._replace(values=np.full(2, float(Erratic.made)))


class Stubborn(ListSource):
    async def __aiter__(self):
        for item in self.items:
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                return
            yield item


class Leaking(ListSource):
    async def __aiter__(self):
        task = asyncio.create_task(asyncio.sleep(1e9))
        for item in self.items:
            yield item
            await asyncio.sleep(1.0)
        task.cancel()


class Greedy(ListSource):
    async def __aiter__(self):
        n = 0
        while True:
            yield samples(1, n)[0]
            n += 1


class Hanging(ListSource):
    async def __aiter__(self):
        await asyncio.sleep(1e9)
        yield


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Erratic, "same items each time"),
        (Stubborn, "let CancelledError pass"),
        (Leaking, "leave no tasks behind"),
        (Greedy, "let others run"),
        (Hanging, "in 100000000.0 s"),
    ],
)
def test_a_source_that_behaves_badly_is_told_how(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_source(lambda: kind((STREAM,), tuple(samples())), repeatable=True)


def test_a_list_source_notes_what_was_answered():
    source = listed(samples(3))()
    source.answered(samples(1)[0])
    assert [one.sequence for one in source.answers] == [0]


class Mean(NamedTuple):
    total: np.ndarray
    seen: int


@dataclass(frozen=True)
class Averaging:
    """A transform that keeps the contract; each flaw makes it break one rule."""

    flaw: str = ""

    def output(self, stream):
        return stream._replace(channels=stream.channels[: 1 if self.flaw == "output" else None])

    def init(self, stream):
        if self.flaw == "list":
            return [object()]
        return Mean(np.zeros(len(stream.channels)), 0)

    def step(self, state, sample):
        if self.flaw == "list":
            return state, [sample]
        known = np.isfinite(sample.values) | (self.flaw == "poison")
        total = state.total + np.where(known, sample.values, 0.0)
        if self.flaw == "state":
            state.total[:] = total
        if self.flaw == "sample":
            sample.values[:] = 0.0
        if self.flaw == "random":
            total = total + np.random.default_rng().normal()
        if self.flaw == "silent":
            return Mean(total, state.seen + 1), []
        if self.flaw == "tuple":
            return Mean(total, state.seen + 1), ()
        values = total / (state.seen + 1)
        if self.flaw == "shape":
            values = values[:1]
        step = 0 if self.flaw == "sequence" else 1
        out = sample._replace(values=values, sequence=sample.sequence * step)
        return Mean(total, state.seen + 1), [out]


def test_a_good_transform_passes():
    check_transform(Averaging, STREAM)


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("output", "unit for each channel"),
        ("list", "arrays and scalars"),
        ("poison", "must recover"),
        ("state", "must not change the state"),
        ("sample", "must not change the sample"),
        ("random", "do the same when done again"),
        ("silent", "must return samples"),
        ("tuple", "return a list"),
        ("shape", "with 2 channels"),
        ("sequence", "sequence must count up"),
    ],
)
def test_a_transform_that_breaks_the_contract_is_told_how(flaw, said):
    with pytest.raises(AssertionError, match=said):
        check_transform(lambda: Averaging(flaw), STREAM)


class Sink:
    def __init__(self, flaw=""):
        self.flaw, self.closed = flaw, False

    async def write(self, results):
        if self.flaw == "changes":
            results.clear()
        if self.flaw == "hangs":
            await asyncio.sleep(1e9)
        if self.flaw == "leaks":
            self.task = asyncio.ensure_future(asyncio.sleep(1e9))
        return 1 if self.flaw == "returns" else None

    async def close(self):
        if self.flaw == "closes once" and self.closed:
            raise RuntimeError("closed twice")
        self.closed = True


def test_a_good_sink_passes():
    check_sink(Sink, samples(3))
    check_sink(Sink, samples(3), virtual=True)


@pytest.mark.parametrize(
    ("flaw", "error", "said"),
    [
        ("changes", AssertionError, "leave the list"),
        ("hangs", AssertionError, "within 100000000.0 s"),
        ("leaks", AssertionError, "no tasks behind"),
        ("returns", AssertionError, "return None"),
        ("closes once", RuntimeError, "twice"),
    ],
)
def test_a_sink_that_breaks_the_contract_is_told_how(flaw, error, said):
    with pytest.raises(error, match=said):
        check_sink(lambda: Sink(flaw), samples(3), virtual=True)


def test_virtual_time_passes_at_once_and_in_order():
    order = []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        order.append((seconds, asyncio.get_running_loop().time()))

    async def main():
        await asyncio.gather(*(sleeper(seconds) for seconds in (86400.0, 0.1, 3.0, 0.1)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    start = time.monotonic()
    assert virtual_run(main()) == pytest.approx(86405.0)
    assert time.monotonic() - start < 1.0
    assert [seconds for seconds, _ in order] == [0.1, 0.1, 3.0, 86400.0]
    assert all(at == pytest.approx(seconds) for seconds, at in order)


def test_virtual_time_goes_on_where_floats_are_coarse():
    async def main():
        for _ in range(3):
            await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_later(0.0, ran.append, 1)
            await asyncio.sleep(0.01)

    ran = []
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(1.7e9)) as runner:
        runner.run(main())
    assert len(ran) == 3


def test_what_would_run_in_a_thread_runs_in_place():
    async def main():
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return await asyncio.to_thread(sum, [1, 2])

    assert virtual_run(main()) == 3


def test_waiting_for_nothing_raises_instead_of_hanging():
    with pytest.raises(RuntimeError, match="everything waits"):
        virtual_run(asyncio.Event().wait())


def test_real_sockets_in_virtual_time_raise():
    async def main():
        await asyncio.open_connection("127.0.0.1", port)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RuntimeError, match="no real sockets"):
            virtual_run(main())


def test_a_virtual_loop_is_an_ordinary_one_to_asyncio():
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert isinstance(runner.get_loop(), asyncio.AbstractEventLoop)
