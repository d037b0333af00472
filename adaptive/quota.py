"""The CPU quota of the control groups that this process is in, as the kernel tells it.

The tightest of the own group and all above it counts. What cannot be read, or makes no sense,
limits nothing: a quota that is there all the same shows as slowness, as it did before.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class Quota(NamedTuple):
    """How much CPU time a group may take in each period."""

    cpu: float  # [s], of all cores together
    period: float  # [s]

    @property
    def share(self) -> float:
        """Of one core."""
        return self.cpu / self.period


def find(root: Path = ROOT) -> Quota | None:
    """Read the tightest quota; None where there is none.

    Args:
        root: Below which `proc` and what is mounted are looked for.
    """
    found = [quota for folder in folders(root) if (quota := read(folder))]
    return min(found, key=lambda quota: quota.share, default=None)


def folders(root: Path = ROOT, controller: str = "cpu") -> Iterator[Path]:
    """The folders of the own groups and of those above them, of either version of cgroups.

    Args:
        root: Below which `proc` and what is mounted are looked for.
        controller: Of what is limited; in the first version each has groups of its own.
    """
    groups = {}
    for line in lines(root / "proc/self/cgroup"):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            groups["cgroup2"] = path
        elif controller in controllers.split(","):
            groups["cgroup"] = path
    for line in lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        own, mounted = before.split(" "), after.split(" ")
        if len(own) < 5 or len(mounted) < 3 or mounted[0] not in groups:
            continue
        if mounted[0] == "cgroup" and controller not in mounted[2].split(","):
            continue
        top = root / plain(own[4]).lstrip("/")
        yield top
        # In a container a part of the tree may be mounted, and the group be named from its root.
        path = groups[mounted[0]]
        inside = path.removeprefix(plain(own[3]).rstrip("/")).strip("/")
        folder = top
        for part in inside.split("/") if inside else ():
            if part in ("..", ""):
                break
            folder = folder / part
            yield folder


def read(folder: Path) -> Quota | None:
    """Read the quota of one group; None if it has none."""
    numbers = " ".join(lines(folder / "cpu.max")).split()
    if not numbers:
        names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
        numbers = [" ".join(lines(folder / name)).strip() for name in names]
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        return None  # `max`, or -1, or nothing that we know
    cpu, period = (int(number) / 1e6 for number in numbers)
    return Quota(cpu, period) if cpu > 0.0 and period > 0.0 else None


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def plain(path: str) -> str:
    """A path of mountinfo, where odd characters are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
