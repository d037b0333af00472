"""`adaptive bench governor --record`: how much longer than nominal calls take, on a real machine.

Calls at all levels and of a few sizes take turns, one each few milliseconds, through the socket to
a model's process, while the machine is idle or busy. What is kept of each is when it began and the
logarithm of its cost to the nominal one; `adaptive.scenarios` makes worlds of it. Under each load
there is a recording to tune by, and another that is held out for final figures.
"""

import asyncio
import contextlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from adaptive import rehearsal
from adaptive.disturbances import CORES, CPU, MEMORY, Impossible, stress
from adaptive.ingest import busy
from adaptive.isolation import Process, Remote
from adaptive.settings import Model, empty_block
from adaptive.traces import PARTS

STREAMS, CHANNELS = 512, 1
SIZES = 2, 16, 64
SECONDS = 60.0  # of each recording
APART = 3e-3  # [s] between the beginnings of two calls, unless the first takes longer
# Share of the processors that others may take, seconds in which that is measured, and how often.
CALM, SAMPLED, ATTEMPTS = 0.12, 2.0, 30
PIECE = 10.0  # [s] that are recorded at a time
LOADS: dict[str, Callable[[], AbstractContextManager]] = {
    "idle": contextlib.nullcontext,
    "busy": lambda: stress(*CPU),
    "memory": lambda: stress(*MEMORY),
}


def record(
    model: Model,
    path: Path,
    seconds: float,
    say: Callable[[str], None],
    compiled: Callable[[str], None] = lambda name: None,
) -> None:
    """Record under every load, twice, and write the file.

    It waits a while for others on the machine to be calm; what they took is said.

    Args:
        model: Whose levels are called.
        path: Of the file, .npz.
        seconds: Of each recording.
        say: Called with a line about each.
        compiled: Called with the name of each program.
    """
    arrays, about = asyncio.run(_record(model, seconds, say, compiled))
    content = json.dumps(about).encode()
    np.savez_compressed(path, about=np.frombuffer(content, np.uint8), **arrays)
    say(f"{path}: {path.stat().st_size} bytes")


async def _record(
    model: Model, seconds: float, say: Callable[[str], None], compiled: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the arrays, and what is said of them."""
    process = Process()
    try:
        remote = Remote(process, STREAMS, CHANNELS, model)
        costs, _ = await remote.prepare(compiled)
        await remote.beside("rehearse", 0, empty_block(CHANNELS))  # makes the copies
        arrays: dict[str, Any] = {"sizes": np.array(len(SIZES))}  # of each level in turn
        about: dict[str, Any] = {
            "cores": CORES,
            "machine": platform.machine(),
            "kernel": platform.release(),
            "streams": STREAMS,
            "nominal_us": [{size: round(1e6 * row[size]) for size in SIZES} for row in costs],
            "recordings": {},
        }
        for part in PARTS:
            for name, load in LOADS.items():
                try:
                    found, others = await pieces(remote, costs, load, seconds)
                except Impossible as error:
                    say(f"{part}, {name}: left out: {error}")
                    continue
                for key, array in found.items():
                    arrays[f"{part}/{name}/{key}"] = array
                rate = len(found["time"]) / seconds
                about["recordings"][f"{part}/{name}"] = {
                    "others": others,
                    "load": os.getloadavg()[0],
                    "calls_a_second": rate,
                }
                slow = np.exp(np.quantile(found["ratio"].astype(float), (0.5, 0.9, 0.99, 0.999)))
                quantiles = " / ".join(f"{q:.2f}" for q in slow)
                say(
                    f"{part}, {name}: others took {others:.0%} of the machine, {rate:.0f} calls a "
                    f"second, p50 / p90 / p99 / p99.9 of their slowdown {quantiles}"
                )
    finally:
        process.close()
    return arrays, about


class Watch:
    """What share of the machine's processors others take, from when it was made."""

    def __init__(self, *pids: int):
        """Begin.

        Args:
            pids: Of the processes that are not others.
        """
        self.pids = pids
        self.start = self._spent()

    def _spent(self) -> tuple[float, float, float]:
        """Time of all processors, their time at work, and that of ours [s]."""
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(one) / os.sysconf("SC_CLK_TCK") for one in fields]
        idle = ticks[3] + ticks[4]  # the last: waiting for a disk
        return sum(ticks), sum(ticks) - idle, sum(busy(pid) for pid in self.pids)

    def others(self) -> float:
        """The share since then."""
        total, work, ours = np.subtract(self._spent(), self.start)
        return float(max(work - ours, 0.0) / max(total, 1e-9))


async def calm() -> float:
    """Wait a while for others to be calm; what they take then."""
    share, left = 1.0, ATTEMPTS
    while share > CALM and left > 0:
        watch, left = Watch(os.getpid()), left - 1
        await asyncio.sleep(SAMPLED)
        share = watch.others()
    return share


async def pieces(
    remote: Remote,
    costs: list[dict[int, float]],
    load: Callable[[], AbstractContextManager],
    seconds: float,
) -> tuple[dict[str, np.ndarray], float]:
    """Record in pieces, each when others are calm; without a load also as long as they are.

    Returns:
        What came of the calls, by name, and the largest share of the machine that others took.
    """
    kept: list[dict[str, np.ndarray]] = []
    length, most, left = min(PIECE, seconds), 0.0, ATTEMPTS
    while len(kept) * length < seconds:
        share = await calm()
        watch = Watch(os.getpid(), remote.process.child.pid)
        with load():
            found = await calls(remote, costs, length)
        if load is contextlib.nullcontext:
            share = watch.others()
            left -= 1
            if share > CALM and left > 0:
                continue
        most = max(most, share)
        found["time"] += np.float32(len(kept) * length)
        kept.append(found)
    return {name: np.concatenate([one[name] for one in kept]) for name in kept[0]}, most


async def calls(
    remote: Remote, costs: list[dict[int, float]], seconds: float
) -> dict[str, np.ndarray]:
    """Let levels and sizes take turns for so long [s]; what came of it, by name."""
    clock, levels = asyncio.get_running_loop().time, len(costs)
    kinds = {
        (level, size): block
        for level, size, block in rehearsal.calls(levels, STREAMS, CHANNELS, SIZES, 1)
    }
    time, ratio, place = [], [], []
    begin = clock()
    at = 0
    while (now := clock()) < begin + seconds:
        # Every level is called before one of them is called with another size.
        level, number = at % levels, at // levels % len(SIZES)
        block = kinds[level, SIZES[number]].copy()
        rows = block[:, 0] >= 0
        block[rows, 0] = (block[rows, 0] + 37 * at) % STREAMS
        await remote.beside("rehearse", level, block)
        cost = remote.took
        time.append(now - begin)
        ratio.append(np.log(cost / costs[level][SIZES[number]]))
        place.append(level * len(SIZES) + number)
        at += 1
        await asyncio.sleep(max(now + APART - clock(), 0.0))
    return {
        "time": np.array(time, np.float32),
        "ratio": np.array(ratio, np.float16),
        "kind": np.array(place, np.uint8),
    }
