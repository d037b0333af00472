"""What `adaptive bench` does with its options; what is measured is in modules of its own."""

import argparse
from collections.abc import Sequence
from typing import Any

from adaptive.commands import settings_of
from adaptive.console import OUT, WIDE, bar


def bench_machine(args: argparse.Namespace) -> int:
    """`adaptive bench`."""
    from adaptive import bench, ingest, load

    samples = args.samples
    if samples is None:
        samples = 100_000 if args.what == "governor" else 3000
    if min(args.channels, samples, args.seeds, args.workers) < 1 or args.rate_hz < 0:
        raise ValueError(
            "--channels, --samples, --seeds and --workers must be at least 1, --rate-hz at least 0"
        )
    if args.what == "governor" and args.simulate:
        return contest_of_governors(
            args.seeds,
            samples,
            args.workers,
            args.cases or (),
            held_out=args.held_out,
            alone=args.alone,
        )
    model = settings_of(args.config)["model"]
    with bar("compiling", None) as advance:

        def compiled(name: str) -> None:
            advance(1, f"compiled {name}")

        def say(what: object) -> None:
            OUT.print(what, highlight=False)

        if args.what == "latency":
            bench.latency(model, args.channels, samples, args.rate_hz, compiled, say)
        elif args.what == "throughput":
            bench.throughput(model, args.channels, compiled, say)
        elif args.what == "growth":
            bench.growth(model, compiled, say)
        elif args.what == "memory":
            bench.memory(model, args.channels, compiled, say)
        elif args.what == "ingest":
            seconds = 10.0 if args.seconds is None else args.seconds
            shared = args.streams, args.payload, seconds, args.qos, args.deadline_ms
            loads = [load.Load(float(rate), *shared, args.driver) for rate in args.rates]
            ingest.measure(model, loads, say)
        elif args.what == "governor":
            governors_live(args, model, compiled, say)
        else:
            bench.start(say)
    return 0


def contest_of_governors(
    seeds: int,
    samples: int,
    workers: int,
    scenarios: Sequence[str],
    *,
    held_out: bool,
    alone: bool,
) -> int:
    """`adaptive bench governor --simulate`."""
    from adaptive import contest

    names = contest.YARDSTICKS if alone else ()
    found, worlds = [], seeds * len(scenarios or contest.SCENARIOS) * len(contest.SITES)
    with bar("living through", worlds) as advance:
        for one in contest.outcomes(seeds, samples, names, workers, held_out, scenarios):
            found.append(one)
            advance()
    OUT.width = max(OUT.width, WIDE)  # a line that is broken says more than a number that is cut
    for table in contest.tables(found):
        OUT.print(table)
    return 0


def governors_live(args: argparse.Namespace, model: Any, compiled: Any, say: Any) -> None:
    """`adaptive bench governor --live`, and `--record`."""
    from adaptive import live, recording

    if not (args.live or args.record):
        raise ValueError("bench governor: wanted --simulate, --live or --record FILE, got nothing")
    if args.seconds is not None and args.seconds <= 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds:g}")
    if args.record:
        recording.record(model, args.record, args.seconds or recording.SECONDS, say, compiled)
    else:
        live.compare(
            model, args.cases or tuple(live.CASES), args.seconds or live.SECONDS, say, compiled
        )
