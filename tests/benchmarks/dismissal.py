"""What ten dismissals of a recurring harmless pattern do to its alarms and to those of others.

    python tests/benchmarks/dismissal.py [--seeds 3]

Three backgrounds (a sine with noise, a slow random walk, noise), each with harmless bumps and, less
often, events of another form, at random times. An operator answers the first ten alarms of bumps
200 samples later. Counted after the last answer, with and without the answers: bumps and events
that raised an alarm within 60 samples, and all alarms beside them. One default configuration but
for the alarms asked for, which are as many as there are bumps and events.
"""

import argparse

import numpy as np

from adaptive.controller import Controller
from adaptive.settings import Alarms, Model

ROWS, FIRST, WITHIN, LATE, ANSWERS = 24_000, 1500, 60, 200, 10
PER_DAY = 86400 / 330  # one sample a second


def background(name, rng):
    """Noise of a kind."""
    if name == "sine":
        return np.sin(2 * np.pi * np.arange(ROWS) / 60) + 0.1 * rng.normal(size=ROWS)
    if name == "walk":
        values = np.zeros(ROWS)
        for n in range(1, ROWS):
            values[n] = 0.95 * values[n - 1] + 0.2 * rng.normal()
        return values
    return 0.3 * rng.normal(size=ROWS)


def made(name, seed):
    """A stream, where its harmless bumps begin, and where its events do."""
    rng = np.random.default_rng(seed)
    values, bumps, events, at = background(name, rng), [], [], FIRST
    while at < ROWS - 400:
        form = np.hanning(30)
        if rng.random() < 0.7:
            values[at : at + 30] += 2.5 * form
            bumps.append(at)
        else:
            values[at : at + 30] -= 2 * np.sign(np.sin(0.8 * np.arange(30))) * form
            events.append(at)
        at += int(rng.integers(250, 450))
    return values, bumps, events


def lived(programs, values, bumps, answered):
    """The alarms, and when the last of the answers was given."""
    controller = Controller(1, 1, programs.settings, Alarms(PER_DAY))
    controller.engine.take_programs(programs.engine)
    level, alarms, waiting = len(controller.levels) - 1, [], []
    given = last = 0
    for first in range(0, ROWS, 32):
        some = [controller.arrive(0, np.array([x])) for x in values[first : first + 32]]
        for estimate in controller.refine(level, some):
            n = estimate.index
            answer = controller.settle(estimate, float(n), values[n : n + 1])
            if answer.alarm:
                alarms.append(n)
                if given < ANSWERS and any(b - 5 <= n <= b + WITHIN for b in bumps):
                    given += 1
                    waiting.append(n)
            while waiting and waiting[0] + LATE <= n:
                row = waiting.pop(0)
                if answered:
                    controller.label(0, np.array([row]), 0)
                last = n
    return np.array(alarms), last


def caught(alarms, starts, after):
    """How many of some patterns raised an alarm, and of how many."""
    some = [s for s in starts if s > after]
    return sum(((alarms >= s - 5) & (alarms <= s + WITHIN)).any() for s in some), len(some)


def main():
    """Print the table."""
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--seeds", type=int, default=3)
    seeds = args.parse_args().seeds
    programs = Controller(1, 1, Model(learn_every_samples=0))
    for _ in programs.engine.warm_up([len(programs.levels) - 1]):
        pass
    print(
        "background seed | bumps alarmed: before -> after | events: before -> after | other alarms"
    )
    for name in ("sine", "walk", "noise"):
        for seed in range(seeds):
            values, bumps, events = made(name, seed)
            got = [lived(programs, values, bumps, answered) for answered in (False, True)]
            after = max(last for _, last in got)
            cells = []
            for starts in (bumps, events):
                (a, many), (b, _) = (caught(alarms, starts, after) for alarms, _ in got)
                cells.append(f"{a} -> {b} of {many}")
            rest = [
                int((alarms > after).sum())
                - sum(caught(alarms, starts, after)[0] for starts in (bumps, events))
                for alarms, _ in got
            ]
            print(f"{name} {seed} | {cells[0]} | {cells[1]} | {rest[0]} -> {rest[1]}", flush=True)


if __name__ == "__main__":
    main()
