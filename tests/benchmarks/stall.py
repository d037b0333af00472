"""Measures how long an agent of many streams keeps its event loop waiting, most of all by saving.

    python tests/benchmarks/stall.py --streams 256 --rate 1000 --seconds 40 --every 10

A task sleeps a millisecond at a time and notes how late it wakes; what is longer than the time
between two samples is a sample that came late into the agent. Beside it: how many answers were
mandatory, and how many came by the deadline of 50 ms. Says the same of a run without checkpoints.
`--busy 4 --realtime` shows what real time is worth on a crowded machine, `--turn 5e-3 5e-4` what
it is that threads hand the interpreter on sooner.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from adaptive import processor
from adaptive.agent import Agent
from adaptive.config import AgentSettings, Config, Feed
from adaptive.decision import Settings
from adaptive.settings import Alarms, Model
from sensors.sample import Sample, Stream
from sensors.transforms import Chain

SETTLING = 5.0  # [s] at the start that do not count


class Sensors:
    """Streams of noise around a wave, in turn, each when it is due."""

    waits = True  # for the models

    def __init__(self, streams: int, rate: float):
        self.streams = [Stream(f"s{n}", ("x",), ("",), rate / streams) for n in range(streams)]
        self.rate = rate

    async def __aiter__(self):
        clock, rng, n = asyncio.get_running_loop().time, np.random.default_rng(0), 0
        start = clock()
        while True:
            await asyncio.sleep(max(start + n / self.rate - clock(), 0.0))
            while n / self.rate <= clock() - start:
                number, turn = n % len(self.streams), n // len(self.streams)
                values = np.array([np.sin(turn / 10) + 0.1 * rng.normal()])
                yield Sample(self.streams[number].name, turn, n / self.rate, values)
                n += 1

    def answered(self, sample: Sample) -> None:
        """Nobody is told."""


async def watched(agent: Agent, seconds: float) -> np.ndarray:
    """Run an agent for some seconds after its models are ready; the lag of each millisecond."""
    running, clock, lags = asyncio.create_task(agent.run()), time.perf_counter, []
    await agent.loop.ready.wait()
    await asyncio.sleep(SETTLING)
    end = clock() + seconds
    while clock() < end:
        before = clock()
        await asyncio.sleep(1e-3)
        lags.append(clock() - before - 1e-3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return np.array(lags)


def measure(args: argparse.Namespace, every: float, realtime: bool) -> None:
    """Run one agent and say how late it was."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        settings = AgentSettings(
            checkpoint_path=str(path), checkpoint_every_s=every, realtime=realtime
        )
        feed = Feed(Sensors(args.streams, args.rate), Chain(()), 0.05, Alarms())
        agent = Agent(Config(settings, Model(), Settings(), None, (feed,), ()))
        lags = 1e3 * asyncio.run(watched(agent, args.seconds))
        size = path.stat().st_size / 2**20
    counters = [track.counters for track in agent.tracks.values()]
    total = sum(c.received for c in counters)
    full, met = sum(c.full for c in counters), sum(c.met for c in counters)
    p50, p99, p999, worst = np.quantile(lags, (0.5, 0.99, 0.999, 1.0))
    print(
        f"{args.streams} streams, {args.rate:g} samples/s, a checkpoint of {size:.0f} MiB "
        + (f"each {every:g} s" if every < args.seconds else "at the end alone")
        + f", threads take turns each {1e3 * processor.TURN:g} ms"
        + (", in real time" if realtime else "")
        + f": lag p50 / p99 / p99.9 / worst {p50:.2f} / {p99:.2f} / {p999:.1f} / {worst:.0f} ms, "
        f"{np.sum(lags > 5.0)} above 5 ms, in all {lags[lags > 5.0].sum():.0f} ms; "
        f"of {total} samples {100 * full / total:.2f} % full, {100 * met / total:.2f} % in time"
    )
    for name, text in agent.health.lines():
        print(f"    {name}: {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1000.0, help="samples/s of all streams")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--every", type=float, default=10.0, help="between checkpoints [s]")
    parser.add_argument("--turn", type=float, nargs="*", default=[processor.TURN], help="[s]")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it that only turn")
    parser.add_argument("--realtime", action="store_true", help="with and without it")
    args = parser.parse_args()
    command = [sys.executable, "-c", "while True: pass"]
    beside = [subprocess.Popen(command) for _ in range(args.busy)]
    try:
        for every in (1e6, args.every):
            for processor.TURN in args.turn:
                for realtime in (False, True) if args.realtime else (False,):
                    measure(args, every, realtime)
    finally:
        for process in beside:
            process.kill()
