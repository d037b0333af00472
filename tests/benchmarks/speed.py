"""All that is wanted of the speed, in one table: what is asked, what is here, and the peers.

    python tests/benchmarks/speed.py [--only alone,banks,...]

Measures one part after the other, a quarter of an hour in all, and needs what its parts need:
`peers/speed.py` (gcc, and the peers that are to be compared) and `adaptive bench ingest`
(mosquitto). One channel, one step ahead, the default configuration. A part that cannot be measured
here says why.
"""

import argparse
import importlib.util
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptive import bench, ingest, load
from adaptive.engine import Engine
from adaptive.settings import BLOCK, Model

OUT = Console(width=120)
MANY = 8192  # streams
KEEP_WARM, IDLE = 2e-3, 10e-3  # [s]


def peers():
    """The module beside this one that knows them."""
    path = Path(__file__).with_name("peers") / "speed.py"
    spec = importlib.util.spec_from_file_location("peers_speed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alone():
    """One stream against the peers, and a bank against C, in turns in one process."""
    laps = peers().measured(rounds=15, calls=60, streams=256)
    median = {name: 1e6 * np.median(lap) for (name, _), lap in laps.items()}
    ours, bank = laps["adaptive, full", 1], median["adaptive, full, 256 streams"]
    p50, p999 = median["adaptive, full"], 1e6 * np.quantile(ours, 0.999)
    yield "one stream, full, the model", "p99.9 <= 250 us", f"{p50:.0f}, p99.9 {p999:.0f} us"
    for name, wanted in (
        ("ONNX Runtime, full window", 5),
        ("PyTorch eager, full window", 25),
        ("continual-inference, 1 layer", 25),
    ):
        if name in median:
            yield f"  of {name}", f"1/{wanted}", f"1/{median[name] / p50:.2f}"
    limit = median["C, 256 streams"]
    for level, wanted in (("trunk", 600), ("full", 100)):
        each = median[f"adaptive, {level}, 256 streams"]
        yield f"256 streams, {level}, a second", f">= {wanted} k", f"{1e3 / each:.1f} k"
    yield "  of the large parts by hand in C", "<= 3", f"{bank / limit:.2f}"
    yield "  C itself, a second", "", f"{1e3 / limit:.1f} k"


def learning():
    """Samples and gradient steps of a bank of 256; and a step against a sample at 64."""
    model = Model()
    for streams, wanted in ((256, ">= 50 k"), (64, "")):
        engine = Engine(streams, 1, model)
        last = len(model.ladder()) - 1
        list(engine.warm_up([last]))
        feed, seen = bench.blocks(engine, streams), np.zeros(streams, int)
        forward, steps, samples, taken = 0.0, 0.0, 0, 0
        for turn in range(12 * streams * model.learn_every_samples // BLOCK // 2):
            begin = time.perf_counter()
            block = next(feed)
            engine.run(last, block)
            middle = time.perf_counter()
            which = block[:, 0].astype(int)
            seen[which] += 1
            due = which[seen[which] % model.learn_every_samples == 0]
            for stream in due:
                engine.learn(int(stream))
            if turn > streams:  # every stream has been seen
                forward += middle - begin
                steps += time.perf_counter() - middle
                samples, taken = samples + BLOCK, taken + len(due)
        each = 1e6 * (forward + steps) / samples
        if wanted:
            yield f"{streams} streams, full and learning, a second", wanted, f"{1e3 / each:.1f} k"
        else:
            one, sample = steps / taken, forward / samples
            spread = f"{one / sample:.1f}; for each sample {steps / forward:.2f}"
            yield f"a gradient step at {streams} streams, in samples", "<= 2", spread


def banks():
    """From 256 to 8192 streams."""
    costs = bench.throughput(Model(), 1, lambda name: None, OUT.print, (1, 256, MANY))
    for k, level in enumerate(Model().ladder()):
        ratio = costs[2][k] / costs[1][k]
        yield f"{level.name}, {MANY} streams against 256", "<= 2", f"{ratio:.2f}"
    engine = Engine(1, 1, Model())
    size = sum(array.nbytes for array in (*engine.store.apart, engine.store.real)) / 1024
    yield "memory of a stream", "<= 96 KiB", f"{size:.0f} KiB"


def growing():
    """Exponents of a sample's time."""
    for name, exponent in bench.growth(Model(), lambda name: None, OUT.print).items():
        yield f"time over {name}, exponent", "<= 1", f"{exponent:.2f}"


def agent():
    """Over a broker."""
    for rate, samples, deadline, wanted in (
        (10_000, 1, 10, "p99 <= 10 ms"),
        (20_000, 1, 30, "p99 <= 30 ms"),
        (20_000, 64, 50, "p99 <= 50 ms at 200 k"),
    ):
        asked = load.Load(rate, 512, samples, 8.0, 0, deadline, "mqtt5")
        (found,) = ingest.measure(Model(), [asked], OUT.print)
        p50, p99, _ = found.late
        said = f"{p50:.1f}, p99 {p99:.1f} ms; {found.answered:.0%}, refined {found.refined:.0%}"
        yield f"MQTT, {samples} in a message, {rate:,} a second", wanted, said


def start():
    """From nothing to answers."""
    (_, cold), (first, warm) = bench.start(OUT.print)
    yield "start, first answer", "<= 1.5 s", f"{first:.1f} s"
    yield "  models ready, programs on disk", "<= 1.5 s", f"{warm:.1f} s"
    yield "  models ready, compiled", "<= 15 s", f"{cold:.1f} s"


def resident():
    """What a process of its own takes, by streams [MiB]."""
    return bench.memory(Model(), 1, lambda name: None, OUT.print)


def memory():
    """Resident, in a process that has done nothing else; the first one makes the programs."""
    for _ in range(2):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(resident).result()
    for streams, size in found.items():
        yield f"resident, {streams} streams", "<= 256 MiB", f"{size:.0f} MiB"


def idle():
    """A single sample after a pause, with and without calls on nothing in between."""
    engine, last = Engine(1, 1, Model()), len(Model().ladder()) - 1
    list(engine.warm_up([last], learning=False))
    feed, nothing = bench.blocks(engine, 1), engine.programs.no_block()
    for name, every in (("left alone", IDLE), ("kept warm", KEEP_WARM)):
        laps, spent, begun = [], 0.0, time.perf_counter()
        for _ in range(300):
            until = time.perf_counter() + IDLE
            while (left := until - time.perf_counter()) > 0:
                time.sleep(min(left, every))
                if every < IDLE:
                    begin = time.perf_counter()
                    engine.run(last, nothing)
                    spent += time.perf_counter() - begin
            block = next(feed)
            block[1:, 0] = -1.0
            begin = time.perf_counter()
            engine.run(last, block)
            laps.append(time.perf_counter() - begin)
        share = spent / (time.perf_counter() - begun)
        said = f"{1e6 * np.median(laps):.0f} us, for {share:.0%} of a core"
        yield f"after 10 ms, {name}", "<= 250 us", said


PARTS = (alone, learning, banks, growing, agent, start, memory, idle)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ",".join(part.__name__ for part in PARTS)
    parser.add_argument("--only", default=names, help=f"of {names}")
    chosen = parser.parse_args().only.split(",")
    if unknown := set(chosen) - set(names.split(",")):
        sys.exit(f"error: no part {', '.join(sorted(unknown))}; have {names}")
    table = Table(title="speed", title_justify="left")
    for head in ("what", "asked", "here"):
        table.add_column(head)
    for part in PARTS:
        if part.__name__ not in chosen:
            continue
        OUT.print(f"measuring {part.__name__}: {part.__doc__}")
        try:
            for row in part():
                table.add_row(*row)
        except (ImportError, OSError, RuntimeError, ValueError, MemoryError) as error:
            table.add_row(part.__name__, "", escape(f"not measured: {error}"))
    OUT.print(table)


if __name__ == "__main__":
    main()
