"""How much memory the processes of an agent hold, and how much they may.

Levels share one state, so none of them needs less memory than another, and queues, outboxes and
memories are of fixed lengths: there is nothing that a price could buy. What can grow all the same
are the allocators of the models' process, over weeks. It gives back what it holds when it ends, so
what helps is to start it anew.

What processes hold apart from files: those the kernel takes away when it needs memory.
"""

import os
from collections.abc import Iterable
from math import inf
from pathlib import Path

from adaptive import quota

NONE = 2**60  # [bytes] from which on a control group has no limit, as the first version says it
HIGH = 0.9  # share of what may be held from which on it is too much
GROWN = 0.1  # share of it by which the models' process must have grown, to be worth a start


def held(process: int, root: Path = quota.ROOT) -> int:
    """What a process holds [bytes]; 0 if it has ended, or where there is no Linux."""
    for line in quota.lines(root / f"proc/{process}/status"):
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if name == "RssAnon" and number.isdigit() and unit == "kB":
            return 1024 * int(number)
    return 0


def limit(root: Path = quota.ROOT) -> float:
    """What the control groups of this process may hold [bytes], the tightest; else infinite."""
    found = inf
    for folder in quota.folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = " ".join(quota.lines(folder / name)).strip()
            if text.isascii() and text.isdigit() and 0 < int(text) < NONE:
                found = min(found, int(text))
    return found


class Memory:
    """What is held of what may be, and whether it is worth it to start the models anew."""

    def __init__(self, allowed: float, root: Path = quota.ROOT):
        """Know the limit.

        Args:
            allowed: [bytes]; infinite where only the control group's counts.
            root: Below which the files of the kernel are looked for.
        """
        self.allowed, self.root = min(allowed, limit(root)), root
        self.held = 0  # [bytes] by all processes
        self._models = 0  # [bytes] by the models'
        self._first: dict[int, int] = {}  # of each such process, at the first look

    def look(self, models: Iterable[int]) -> None:
        """See what is held.

        Args:
            models: Processes of the models, once these are ready.
        """
        each = {process: held(process, self.root) for process in models}
        self._first = {one: self._first.get(one, size) for one, size in each.items()}
        self._models = sum(each.values())
        self.held = held(os.getpid(), self.root) + self._models

    @property
    def high(self) -> bool:
        """Whether it is too much."""
        return self.held > HIGH * self.allowed

    @property
    def grown(self) -> bool:
        """Whether so much has come since the models were ready that without it all were well."""
        more = self._models - sum(self._first.values())
        return more > GROWN * self.allowed and self.held - more <= HIGH * self.allowed

    def __str__(self) -> str:
        """What is said of it."""
        most = f" of {1e-6 * self.allowed:.0f}" if self.allowed < inf else ""
        return f"{1e-6 * self.held:.0f}{most} MB, apart from files"
