"""How long the governor takes to decide and observe: `python tests/benchmarks/bench_governor.py`.

Prints the machine and quantiles in microseconds of one decide plus one observe, over seeded slack,
queue and cost with 8 levels and 5 batch sizes, on a quiet and on a stormy machine.
"""

import gc
import os
import platform
import random
import time

from adaptive.governor import Governor

SIZES = (1, 2, 4, 8, 16)
COSTS = [{b: 0.8e-3 * 1.5**v * b**0.6 for b in SIZES} for v in range(8)]


def laps(calls: int, spread: float) -> list[float]:
    """Return the time of each decide-and-observe [us]."""
    draw, governor = random.Random(0), Governor()
    governor.init(COSTS)
    taken = []
    for n in range(calls):
        slack, queue, now = draw.uniform(1e-3, 50e-3), draw.randint(1, 40), 5e-3 * n
        slow = 1 + abs(draw.gauss(0, spread))
        start = time.perf_counter()
        level, batch, *_ = governor.decide(slack, queue, now)
        between = time.perf_counter()
        cost = slow * COSTS[level][min(b for b in SIZES if b >= batch)]
        again = time.perf_counter()
        governor.observe(level, batch, cost, now)
        taken.append(1e6 * (time.perf_counter() - again + between - start))
    return taken[calls // 10 :]


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for name, spread in (("quiet", 0.02), ("stormy", 2.0)):
        taken = sorted(laps(100_000, spread))
        p50, p90, p99, p999 = (taken[int(q * len(taken))] for q in (0.5, 0.9, 0.99, 0.999))
        print(
            f"{name}: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f}, "
            f"worst {taken[-1]:.0f} us"
        )
