"""`adaptive bench`: how fast the agent is on this machine, and what it takes.

Only ratios and exponents carry over to another machine. What is compared is measured in turns, so
that a slow moment is everybody's.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.settings import BLOCK, Model

Compiled = Callable[[str], None]  # called with the name of each program
Say = Callable[[str | Table], None]  # called with each line and table

BANKS = 1, 64, 256, 1024  # streams
CALLS = 40  # of a block, for each figure of throughput
CHANNELS, HORIZONS, MEMORIES = (
    (1, 2, 4, 8, 16),
    (1, 4, 16, 48),
    (512, 1024, 2048, 4096, 8192, 16384),
)


def latency(
    model: Model, channels: int, samples: int, rate: float, compiled: Compiled, say: Say
) -> None:
    """Measure every level sample by sample, from NumPy in to the answer out.

    Args:
        model: Of the controller.
        channels: Of its stream.
        samples: Scored at each level.
        rate: Of samples [Hz], waited for as in deployment; 0 for back to back.
        compiled: See `Compiled`.
        say: See `Say`.
    """
    engine = Engine(1, channels, model)
    controller = Controller(1, channels, model, engine=engine)
    for name in engine.warm_up():
        compiled(name)
    laps = {name: [] for name in ("mandatory", *(level.name for level in controller.levels))}
    alone = {name: [] for name in laps}  # the model's part
    row = 0
    for values in signal(samples, channels):
        for number, name in enumerate(laps, -1):
            if rate:
                time.sleep(1 / rate)
            start = time.perf_counter()
            sample = controller.arrive(0, values)
            estimate = controller.mandatory(sample)
            if number >= 0:
                call = controller.take(number, [sample])
                begin = time.perf_counter()
                packed = engine.run(number, call.block)
                alone[name].append(1e6 * (time.perf_counter() - begin))
                estimate = controller.finish(call, packed)[-1]
            controller.settle(estimate, float(row), values)
            laps[name].append(1e6 * (time.perf_counter() - start))
            row += 1
            if number < 0:
                controller.refine(0, [sample])
    pause = f", one each {1e3 / rate:g} ms" if rate else ""
    title = f"one sample{pause}, {channels} channels, NumPy in to answer out, us"
    table = Table(title=title, title_justify="left")
    for head in ("level", "p50", "p99", "p99.9", "of it the model, p50"):
        table.add_column(head, justify="left" if head == "level" else "right")
    for name, lap in laps.items():
        share = f"{np.median(alone[name]):.0f}" if alone[name] else "-"
        table.add_row(name, *(f"{q:.0f}" for q in np.quantile(lap, (0.5, 0.99, 0.999))), share)
    say(table)
    say(f"a gradient step: {1e6 * engine.learn_cost():.0f} us")


def throughput(
    model: Model,
    channels: int,
    compiled: Compiled,
    say: Say,
    banks: Sequence[int] | None = None,
) -> list[list[float]]:
    """Measure every level in full blocks of samples of different streams, in larger banks each.

    Args:
        model: Of the engines.
        channels: Of every stream.
        compiled: See `Compiled`.
        say: See `Say`.
        banks: How many streams each has, `BANKS` if None.

    Returns:
        For each bank what a sample takes at each level [s].
    """
    banks = banks or BANKS
    title = f"us a sample, the model in blocks of {BLOCK}, {channels} channels, one thread"
    table = Table(title=title, title_justify="left")
    heads = (
        "level",
        *(f"{n} streams" if n > 1 else "1 stream" for n in banks),
        f"a second, {banks[-2]}",
        "exponent",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "level" else "right")
    costs, size = [], 0.0
    for streams in banks:
        engine = Engine(streams, channels, model)
        for name in engine.warm_up(learning=False):
            compiled(f"{name}, {streams} streams")
        size = sum(array.nbytes for array in engine.store.apart) + engine.store.real.nbytes
        costs.append(sample_costs(engine, streams))
    for k, level in enumerate(model.ladder()):
        row = [cost[k] for cost in costs]
        grows = exponent(banks[1:], row[1:])
        each = (f"{1e6 * one:.1f}" for one in row)
        table.add_row(level.name, *each, f"{1 / row[-2]:,.0f}", f"{grows:+.2f}")
    say(table)
    say(f"state of a stream: {size / banks[-1] / 1024:.0f} KiB")
    return costs


def growth(model: Model, compiled: Compiled, say: Say) -> dict[str, float]:
    """Fit how a sample's time grows with channels, horizon and memory, at the highest level.

    Returns:
        The exponents.
    """
    title = f"us a sample, one stream, in a block of {BLOCK}, highest level"
    table = Table(title=title, title_justify="left")
    for head in ("of", "sizes", "us", "exponent"):
        table.add_column(head, justify="left" if head == "of" else "right")
    settings = {
        "channels": [(size, size, model) for size in CHANNELS],
        "horizon": [(size, 1, replace(model, horizon_samples=size)) for size in HORIZONS],
        "memory": [(size, 1, with_memory(model, size)) for size in MEMORIES],
    }
    exponents = {}
    for name, cases in settings.items():
        costs = []
        for size, channels, settings_of_it in cases:
            engine, last = Engine(1, channels, settings_of_it), len(settings_of_it.ladder()) - 1
            for _ in engine.warm_up([last], learning=False):
                compiled(f"{name} {size}")
            costs.append(sample_costs(engine, 1, [last])[0])
        sizes = [size for size, *_ in cases]
        each = " ".join(f"{1e6 * cost:.0f}" for cost in costs)
        exponents[name] = exponent(sizes, costs)
        table.add_row(name, " ".join(map(str, sizes)), each, f"{exponents[name]:.2f}")
    say(table)
    return exponents


def start(say: Say) -> list[tuple[float, float]]:
    """Start `adaptive run` twice, with nothing compiled and with everything on disk.

    Returns:
        Of both when it gave the first answer and when its models were ready [s].
    """
    table = Table(title="from the start of the process, s", title_justify="left")
    for head in ("programs", "first answer", "models ready"):
        table.add_column(head, justify="left" if head == "programs" else "right")
    with tempfile.TemporaryDirectory() as folder:
        both = [started(folder), started(folder)]
    for name, times in zip(("to be compiled", "on disk"), both, strict=True):
        table.add_row(name, *(f"{second:.1f}" for second in times))
    say(table)
    return both


def memory(model: Model, channels: int, compiled: Compiled, say: Say) -> dict[int, float]:
    """Measure what is resident with a bank, after it has been compiled and used.

    Returns:
        By the number of streams [MiB].
    """
    before, found = resident(), {}
    table = Table(title=f"resident, MiB, {channels} channels", title_justify="left")
    for head in ("streams", "compiled and used", "of it state"):
        table.add_column(head, justify="right")
    for streams in BANKS:
        engine = Engine(streams, channels, model)
        for name in engine.warm_up(learning=False):
            compiled(f"{name}, {streams} streams")
        sample_costs(engine, streams, calls=-(-streams // BLOCK))
        state = sum(array.nbytes for array in (*engine.store.apart, engine.store.real)) / 2**20
        found[streams] = resident()
        table.add_row(str(streams), f"{found[streams]:.0f}", f"{state:.0f}")
        del engine
    say(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"before: {before:.0f} MiB; at most, while compiling: {peak:.0f} MiB")
    return found


def signal(samples: int, channels: int) -> np.ndarray:
    """Noise on a wave [samples, channels]."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(samples)[:, None] / 20)
    return wave + rng.normal(0, 0.1, (samples, channels))


def blocks(engine: Engine, streams: int) -> Iterator[np.ndarray]:
    """Full inputs of `engine.run`, of all streams in turn, without end."""
    channels, at = engine.shape.channels, 0
    values = signal(4 * BLOCK, channels)
    while True:
        block = engine.programs.no_block()
        block[:, 0] = (at + np.arange(BLOCK)) % streams
        block[:, 1 : 1 + channels] = values[(at + np.arange(BLOCK)) % len(values)]
        block[:, 1 + channels :] = 1.0
        at += BLOCK
        yield block


def sample_costs(
    engine: Engine, streams: int, levels: Sequence[int] | None = None, calls: int = CALLS
) -> list[float]:
    """The median time of a sample in a full block [s], at each level, in turns."""
    levels = range(len(engine.programs.levels)) if levels is None else levels
    laps = [[] for _ in levels]
    feed = blocks(engine, streams)
    for call in range(calls + calls // 4):
        for lap, level in zip(laps, levels, strict=True):
            block = next(feed)
            begin = time.perf_counter()
            engine.run(level, block)
            if call >= calls // 4:
                lap.append((time.perf_counter() - begin) / BLOCK)
    return [float(np.median(lap)) for lap in laps]


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """How a cost grows with a size: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def with_memory(model: Model, size: int) -> Model:
    """The same with another memory, and a level that uses all of it."""
    level = replace(model.ladder()[-1], memory_samples=size)
    return replace(model, memory_samples=size, levels=(level,))


def started(cache: str) -> tuple[float, float]:
    """Start an agent; when it gave the first answer and when its models were ready [s]."""
    command = (sys.executable, "-m", "adaptive", "run", "--no-table", "--for-s", "0.1")
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": cache}
    )
    said = done.stdout + done.stderr
    found = re.search(r"started after ([\d.]+) s.*models ready after ([\d.]+) s", said, re.DOTALL)
    if done.returncode or not found:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return float(found[1]), float(found[2])


def resident() -> float:
    """What of this process is in memory [MiB]; NaN where Linux's account is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / 2**20
