"""What the governor chooses from: the levels' costs by batch size, and the highest that fits."""

from collections.abc import Mapping, Sequence
from math import isfinite, log
from typing import NamedTuple

import numpy as np

from adaptive.slowdown import OFTEN

Row = tuple[float, ...]  # one number for each level
# Of the mandatory answer and of a full one: VUS-PR of anomaly scores, mean over seven groups of
# recordings: `tests/benchmarks/quality.py DATA --save OUT --only anomaly --level NAME`.
WORTH_MANDATORY, WORTH_FULL = 0.193, 0.711


class Ladder(NamedTuple):
    """Nominal costs as measured at the start, and what of the settings every decision needs."""

    sizes: tuple[int, ...]  # of batches that were measured, ascending; the last is the largest
    log_costs: tuple[Row, ...]  # [samples in a batch - 1][levels] ln of seconds
    guard: float  # [s] kept free for publishing
    depth: float  # ln of how much rarer epsilon is than where the tail begins
    costs: tuple[Row, ...] = ()  # the same in seconds
    gains: Row = ()  # what an answer of each level is worth beyond the mandatory one


def between(sizes: Sequence[int], costs: Sequence[float]) -> Row:
    """Costs of batches of 1, 2, ... up to the largest of some sizes, from those of the sizes.

    A call goes through its samples one by one, so its cost is nearly linear: a bank's full level
    takes 1.14 ms for 32, 1.31 for 33, 1.48 for 40 and 2.20 for 64.
    """
    return tuple(np.interp(np.arange(1, sizes[-1] + 1), sizes, costs).tolist())


def ladder(
    costs: Sequence[Mapping[int, float]] | Sequence[float],
    guard_ms: float,
    epsilon: float,
) -> Ladder:
    """Check nominal costs and bring them into the form that decisions need.

    Args:
        costs: For each level [s], or [s] by batch size; cheapest first.
        guard_ms: Kept free for publishing [ms].
        epsilon: Accepted share of refined answers that come too late.

    Raises:
        ValueError: No level, batch sizes that differ between levels, or a cost that is none.
    """
    rows = [row if isinstance(row, Mapping) else {1: row} for row in costs]
    if not rows or not rows[0]:
        raise ValueError("governor: costs must hold at least one level, got none. Warm up first.")
    sizes = tuple(sorted(rows[0]))
    for level, row in enumerate(rows):
        if tuple(sorted(row)) != sizes or sizes[0] < 1:
            raise ValueError(
                f"governor: every level must be measured at the same batch sizes, got "
                f"{sorted(row)} at level {level} and {list(sizes)} at level 0."
            )
        for size, cost in row.items():
            if not (isfinite(cost) and cost > 0.0):
                raise ValueError(
                    f"governor: the cost of level {level} at batch {size} must be a positive "
                    f"number of seconds, got {cost!r}. It is measured by the warm-up."
                )
    each = [between(sizes, [row[size] for size in sizes]) for row in rows]
    whole = tuple(zip(*each, strict=True))
    logs = tuple(tuple(map(log, row)) for row in whole)
    return Ladder(sizes, logs, 1e-3 * guard_ms, log(OFTEN / epsilon), whole)


def highest(costs: Row, room: float, cap: int) -> int:
    """Return the highest level up to `cap` whose log cost fits `room`, or -1.

    Args:
        costs: Log costs.
        room: For them.
        cap: The highest that may be.
    """
    for level in range(cap, -1, -1):
        if costs[level] <= room:
            return level
    return -1
