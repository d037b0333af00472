"""`adaptive bench`: what each level costs on this machine."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.table import Table

from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.settings import BLOCK, Model


def levels(
    model: Model,
    channels: int,
    samples: int,
    rate: float,
    compiled: Callable[[str], None],
    say: Callable[[str | Table], None],
) -> None:
    """Measure every level, interleaved, so that a slow moment of the machine is everybody's.

    Args:
        model: Of the controller.
        channels: Of its stream.
        samples: Scored at each level.
        rate: Of samples [Hz], waited for as in deployment; 0 for back to back.
        compiled: Called with the name of each program.
        say: Called with each line and table.
    """
    engine = Engine(1, channels, model)
    controller = Controller(1, channels, model, engine=engine)
    for name in engine.warm_up():
        compiled(name)
    nothing = np.zeros(channels)
    controller.settle(controller.arrive(0, nothing), 0.0, nothing)
    controller.refine(0)
    say(f"process start to first answer: {age():.1f} s")
    costs = engine.costs()
    laps = {name: [] for name in ("mandatory", *(level.name for level in controller.levels))}
    rng, row = np.random.default_rng(0), 0
    for values in np.sin(np.arange(samples)[:, None] / 20) + rng.normal(
        0, 0.1, (samples, channels)
    ):
        for number, name in enumerate(laps, -1):
            if rate:
                time.sleep(1 / rate)
            start = time.perf_counter()
            estimate = controller.arrive(0, values)
            if number >= 0:
                estimate = controller.refine(number)[-1]
            controller.settle(estimate, float(row), values)
            laps[name].append(1e6 * (time.perf_counter() - start))
            row += 1
            if number < 0:
                controller.refine(0)
    say(report(laps, costs, f"one sample, {channels} channels, NumPy in to answer out [us]"))
    say(f"a gradient step: {1e6 * engine.learn_cost():.0f} us")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"resident memory, at most: {peak:.0f} MiB")


def report(laps: dict[str, list[float]], costs: list[dict[int, float]], title: str) -> Table:
    """Lay out the laps [us] of each level as quantiles."""
    table = Table(title=title, title_justify="left")
    for head in ("level", "p50", "p99", "p99.9", f"in a block of {BLOCK}"):
        table.add_column(head, justify="left" if head == "level" else "right")
    for number, (name, lap) in enumerate(laps.items(), -1):
        block = f"{1e6 * costs[number][BLOCK] / BLOCK:.0f}" if number >= 0 else "-"
        table.add_row(name, *(f"{q:.0f}" for q in np.quantile(lap, (0.5, 0.99, 0.999))), block)
    return table


def age() -> float:
    """How long this process has been there [s], by Linux's account of it; NaN elsewhere."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return float("nan")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
