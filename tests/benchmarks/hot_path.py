"""Is an answer slower than it was? This tree and an earlier one, in turns.

    python tests/benchmarks/hot_path.py [--against REVISION] [--most 1.3]

Takes blocks of 32 samples of 64 streams, single samples, and whole answers with calibration through
both trees, each in a process of its own, round by round, and compares the fastest round of each:
other work on a machine only adds to a time. Ends with 1 if anything takes more than `--most` times
as long. The earlier tree is checked out with git; by default it is that of the last commit that
changed `hot_path.txt`, where it says what was measured then: who makes the path faster, or slower
for a reason, writes a line there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
ROUNDS, STREAMS, CHANNELS = 12, 64, 2
MEASURED = "block", "single", "answer"
GIT = "git", "-C", str(ROOT)
NOTES = Path(__file__).with_suffix(".txt")


def last_note():
    """The last commit that changed the notes."""
    command = (*GIT, "log", "-1", "--format=%h", "--", str(NOTES))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def serve():
    """Measure a round for each line that comes in; say its times [us a sample]."""
    from adaptive.bench import blocks
    from adaptive.controller import Controller
    from adaptive.engine import Engine
    from adaptive.settings import Model

    engine = Engine(STREAMS, CHANNELS, Model())
    full = len(engine.programs.levels) - 1
    list(engine.warm_up([full], learning=False))
    controller = Controller(STREAMS, CHANNELS, Model(), engine=engine)
    feed, rng = blocks(engine, STREAMS), np.random.default_rng(0)

    def block():
        engine.run(full, next(feed))
        return 32

    def single():
        one = next(feed).copy()
        one[1:, 0] = -1.0
        engine.run(full, one)
        return 1

    def answer():
        some = [controller.arrive(stream, rng.normal(size=CHANNELS)) for stream in range(32)]
        for estimate in controller.refine(full, some):
            controller.settle(estimate, float(len(laps)), np.zeros(CHANNELS))
        return 32

    laps = []
    print("ready", flush=True)
    for _ in sys.stdin:
        found = {}
        for run in (block, single, answer):
            laps = []
            for _ in range(60):
                begin = time.perf_counter()
                samples = run()
                laps.append(1e6 * (time.perf_counter() - begin) / samples)
            found[run.__name__] = float(np.quantile(laps, 0.2))
        print(json.dumps(found), flush=True)


def started(tree):
    """Start the process of a tree and wait until it is ready."""
    script = tree / Path(__file__).relative_to(ROOT)
    process = subprocess.Popen(
        (sys.executable, script, "--serve"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tree)},
    )
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{script} did not start")
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REVISION", default=last_note())
    parser.add_argument("--most", type=float, default=1.3, help="times as long")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        subprocess.run(
            (*GIT, "worktree", "add", "-q", "--detach", earlier, args.against), check=True
        )
        try:
            trees = {"now": started(ROOT), args.against: started(earlier)}
            rounds = {name: [] for name in trees}
            for _ in range(ROUNDS):
                for name, process in trees.items():
                    process.stdin.write("\n")
                    process.stdin.flush()
                    rounds[name].append(json.loads(process.stdout.readline()))
            for process in trees.values():
                process.stdin.close()
                process.wait()
        finally:
            subprocess.run((*GIT, "worktree", "remove", "--force", earlier), check=True)
    slower = False
    print(f"us a sample: now, {args.against}, ratio")
    for what in MEASURED:
        now, then = (min(one[what] for one in rounds[name]) for name in trees)
        slower |= now > args.most * then
        print(f"{what:8s} {now:8.1f} {then:8.1f} {now / then:6.2f}")
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
