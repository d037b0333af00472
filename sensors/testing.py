"""Checks that every source, transform and sink must pass, and what tests need beside them."""

import asyncio
import copy
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sensors.sample import Feedback, Item, Rejected, Sample, Source, Stream
from sensors.virtual_time import VirtualTimeLoop as VirtualTimeLoop
from sensors.virtual_time import virtual_run as virtual_run

PATIENCE = 10_000  # [items] after which a source that lets nobody else run is to blame


@dataclass(frozen=True)
class ListSource:
    """A source of given items.

    Attributes:
        streams: What it delivers.
        items: All of it, in order.
        interval: Between two items [s]; 0 for one right after the other.
        answers: The samples that have been answered, in order; filled in by `answered`.
    """

    streams: tuple[Stream, ...]
    items: tuple[Item, ...]
    interval: float = 0.0
    answers: list[Sample] = field(default_factory=list, init=False, repr=False, compare=False)

    def answered(self, sample: Sample) -> None:
        """Keep it."""
        self.answers.append(sample)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Yield the items, against the intended times."""
        clock = asyncio.get_running_loop().time
        start = clock()
        for n, item in enumerate(self.items):
            await asyncio.sleep(max(start + n * self.interval - clock(), 0.0))
            yield item


def check_source(
    factory: Callable[[], Source],
    *,
    repeatable: bool = False,
    samples: int = 50,
    virtual: bool = True,
    timeout: float | None = None,
) -> None:
    """Check that a source keeps the contract of `sensors.Source`.

    Its streams are known before the first sample; samples belong to them, have their number of
    channels in float64, count up by one and do not go back in time; `answered` takes each of
    them; iterating ends cleanly when cancelled.

    Args:
        factory: Makes the source, anew for each pass.
        repeatable: It promises the same items each time it is made, as one with a seed does.
        samples: How many items to look at, if there are so many.
        virtual: Run in virtual time; not possible for a source with real sockets.
        timeout: Of each pass [s]; None for 30 s, in virtual time for three years.

    Raises:
        AssertionError: It does not, and says how.
    """
    run = virtual_run if virtual else asyncio.run
    limit = (1e8 if virtual else 30.0) if timeout is None else timeout
    run(examine_source(factory, repeatable=repeatable, samples=samples, timeout=limit))


async def examine_source(
    factory: Callable[[], Source],
    *,
    repeatable: bool = False,
    samples: int = 50,
    timeout: float = 30.0,
) -> None:
    """Do what `check_source` does, in the event loop that is running."""
    source = factory()
    _require(
        isinstance(source, Source),
        f"a source has `streams`, `__aiter__` and `answered`; {source!r} lacks one of them",
    )
    streams = source.streams
    _require(
        isinstance(streams, tuple) and streams,
        f"streams must be a tuple of Stream, at least one, before iterating, got {streams!r}",
    )
    known = {stream.name: stream for stream in streams}
    _require(
        len(known) == len(streams),
        f"streams must have different names, got {[stream.name for stream in streams]}",
    )
    for stream in streams:
        _require(
            len(stream.units) == len(stream.channels) > 0,
            f"stream {stream.name!r} needs one unit for each of its channels, and a channel: "
            f"{stream}",
        )
    items = await _take(source, samples, timeout)
    _require(
        any(isinstance(item, Sample) for item in items),
        f"a source must yield samples; of the first {len(items)} items none is one",
    )
    _require(source.streams == streams, "streams must stay the same while iterating")
    last: dict[str, Sample] = {}
    for item in items:
        _require(
            isinstance(item, Sample | Feedback | Rejected),
            f"a source yields Sample, Feedback or Rejected, got {type(item).__name__}",
        )
        if isinstance(item, Feedback):
            _require(
                item.stream in known and item.label in (0, 1),
                f"feedback must name a stream of {sorted(known)} and label 0 or 1, got {item}",
            )
        if isinstance(item, Sample):
            _check_sample(item, known, last.get(item.stream))
            last[item.stream] = item
            source.answered(item)
    await _check_cancelling(factory, timeout)
    if repeatable:
        again = await _take(factory(), samples, timeout)
        _require(
            len(again) == len(items) and all(map(_same, items, again)),
            "a repeatable source must yield the same items each time it is made; it did not",
        )


def _check_sample(sample: Sample, known: dict[str, Stream], before: Sample | None) -> None:
    name = f"stream {sample.stream!r}, number {sample.sequence}"
    _require(sample.stream in known, f"{name}: samples must belong to one of {sorted(known)}")
    count = len(known[sample.stream].channels)
    values = sample.values
    _require(
        isinstance(values, np.ndarray) and values.dtype == np.float64,
        f"{name}: values must be a float64 array, got {getattr(values, 'dtype', type(values))}",
    )
    _require(
        values.shape == (count,),
        f"{name}: values must have the shape of the stream's channels, ({count},), got "
        f"{values.shape}",
    )
    _require(not np.isinf(values).any(), f"{name}: values must be finite or NaN, got {values}")
    _require(math.isfinite(sample.time), f"{name}: time must be finite, got {sample.time}")
    if before:
        _require(
            sample.sequence == before.sequence + 1,
            f"{name}: sequence must count up by one, the sample before it has {before.sequence}",
        )
        _require(
            sample.time >= before.time,
            f"{name}: time must not go back, from {before.time} to {sample.time} s",
        )


async def _take(source: Source, count: int, timeout: float) -> list[Item]:
    items: list[Item] = []
    iterator = aiter(source)
    try:
        async with asyncio.timeout(timeout):
            while len(items) < count:
                items.append(await anext(iterator))
    except StopAsyncIteration:
        pass
    except TimeoutError:
        raise AssertionError(
            f"a source must yield {count} items, or end, in {timeout} s; it yielded {len(items)}"
        ) from None
    finally:
        if close := getattr(iterator, "aclose", None):
            await close()
    return items


async def _check_cancelling(factory: Callable[[], Source], timeout: float) -> None:
    tasks = asyncio.all_tasks()
    begun = asyncio.Event()

    async def read() -> None:
        count = 0
        # Nothing is awaited in here, so that it is the source that is cancelled.
        async for _ in factory():
            begun.set()
            count += 1
            _require(count < PATIENCE, f"a source must let others run; in {count} items it did not")

    reading = asyncio.ensure_future(read())
    waiting = asyncio.ensure_future(begun.wait())
    await asyncio.wait((reading, waiting), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if reading.done():
        reading.result()
    else:
        reading.cancel()
        await _check_cancelled(reading, timeout)
    for _ in range(10):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks
    _require(not left, f"a source must leave no tasks behind when cancelled; it left {left}")


async def _check_cancelled(reading: asyncio.Task, timeout: float) -> None:
    done, _ = await asyncio.wait((reading,), timeout=timeout)
    _require(done, f"a source must stop when cancelled; it went on for {timeout} s")
    if not reading.cancelled():
        how = f"raised {reading.exception()!r}" if reading.exception() else "returned"
        raise AssertionError(f"a source must let CancelledError pass when cancelled; it {how}")


def check_transform(
    factory: Callable[[], Any], stream: Stream, *, samples: int = 200, missing: int = 3
) -> None:
    """Check that a transform keeps its contract: `output`, `init` and a pure `step`.

    A step changes neither the state nor the sample that it is given, and does the same when done
    again; what comes out has the channels that `output` announced; missing values pass in the
    end; the state is made of arrays and scalars, in tuples or dictionaries, so it can be stored.

    Args:
        factory: Makes the transform.
        stream: What to feed it.
        samples: How many, before and after the missing ones; more than its memory.
        missing: How many samples without any value come in between.

    Raises:
        AssertionError: It does not, and says how.
    """
    transform = factory()
    output = transform.output(stream)
    _require(
        isinstance(output, Stream) and len(output.units) == len(output.channels),
        f"output(stream) must be a Stream with a unit for each channel, got {output!r}",
    )
    state = transform.init(stream)
    _check_leaves(state)
    rng = np.random.default_rng(0)
    rate = stream.sampling_rate or 1.0
    produced: list[Sample] = []
    for n in range(2 * samples + missing):
        values = rng.normal(size=len(stream.channels))
        if samples <= n < samples + missing:
            values[:] = np.nan
        sample = Sample(stream.name, n, n / rate, values)
        before, untouched = copy.deepcopy(state), values.copy()
        after, out = transform.step(state, sample)
        _require(isinstance(out, list), f"step must return a list of samples, got {type(out)}")
        _require(_equal(state, before), f"step must not change the state it is given (sample {n})")
        _require(_equal(values, untouched), f"step must not change the sample it is given ({n})")
        again = transform.step(state, sample)
        _require(
            _equal((after, out), again),
            f"step must do the same when done again from the same state; at sample {n} it did not",
        )
        for one in out:
            _require(
                one.stream == output.name and one.values.shape == (len(output.channels),),
                f"step must return samples of output(stream), {output.name!r} with "
                f"{len(output.channels)} channels, got {one.stream!r} with {one.values.shape}",
            )
            _require(
                one.values.dtype == np.float64, f"values must be float64, got {one.values.dtype}"
            )
        _check_leaves(after)
        produced += out
        state = after
    _require(produced, f"a transform must return samples; after {2 * samples} there was none")
    for one, two in itertools.pairwise(produced):
        _require(
            two.sequence > one.sequence,
            f"sequence must count up, got {two.sequence} after {one.sequence}",
        )
        _require(two.time >= one.time, f"time must not go back, from {one.time} to {two.time} s")
    _require(
        np.isfinite(produced[-1].values).all(),
        f"after missing values a transform must recover; {samples} samples later it still "
        f"returns {produced[-1].values}",
    )


def check_sink(
    factory: Callable[[], Any],
    results: Sequence[Any],
    *,
    virtual: bool = False,
    timeout: float | None = None,
) -> None:
    """Check that a sink keeps its contract: `async write(results)` and `async close()`.

    Args:
        factory: Makes the sink.
        results: A few to write.
        virtual: Run in virtual time; not possible for a sink with real sockets.
        timeout: Of the whole [s]; None for 30 s, in virtual time for three years.

    Raises:
        AssertionError: It does not, and says how.
    """
    run = virtual_run if virtual else asyncio.run
    limit = (1e8 if virtual else 30.0) if timeout is None else timeout
    run(examine_sink(factory, results, timeout=limit))


async def examine_sink(
    factory: Callable[[], Any], results: Sequence[Any], *, timeout: float = 30.0
) -> None:
    """Do what `check_sink` does, in the event loop that is running."""
    tasks = asyncio.all_tasks()
    sink = factory()
    given = list(results)
    kept = copy.deepcopy(given)

    async def use() -> None:
        for batch in (given, [], given[:1]):
            _require(await sink.write(batch) is None, "write must return None")
        _require(
            len(given) == len(kept) and all(map(_equal, given, kept)),
            "write must leave the list and the results as they are; it changed them",
        )
        await sink.close()
        await sink.close()  # once more does nothing

    try:
        await asyncio.wait_for(use(), timeout)
    except TimeoutError:
        raise AssertionError(f"a sink must write and close within {timeout} s") from None
    for _ in range(10):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks
    _require(not left, f"a sink must leave no tasks behind when closed; it left {left}")


def _require(kept: Any, otherwise: str) -> None:
    """Raise `AssertionError`, also under `python -O`, which would skip an assert."""
    if not kept:
        raise AssertionError(otherwise)


def _check_leaves(state: Any) -> None:
    for leaf in _leaves(state):
        _require(
            leaf is None or isinstance(leaf, np.ndarray | np.generic | int | float | str),
            f"a state must consist of arrays and scalars, got a {type(leaf).__name__}",
        )
        _require(
            not isinstance(leaf, np.ndarray) or leaf.dtype != object,
            "a state must consist of arrays of numbers, got one of objects",
        )


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in _leaves(branch)]
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    return [tree]


def _same(one: Item, two: Item) -> bool:
    return type(one) is type(two) and _equal(one, two)


def _equal(one: Any, two: Any) -> bool:
    """Compare trees of arrays and scalars; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
    if isinstance(one, tuple | list) and isinstance(two, tuple | list):
        return len(one) == len(two) and all(map(_equal, one, two))
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        one, two = np.asarray(one), np.asarray(two)
        numbers = one.dtype.kind in "fc" and two.dtype.kind in "fc"
        return one.shape == two.shape and np.array_equal(one, two, equal_nan=numbers)
    return bool(one == two) or (one != one and two != two)
