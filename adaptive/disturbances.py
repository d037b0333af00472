"""What befalls a machine while something is measured on it: other work, a quota, a stopped process.

Each is a context: it begins when it is entered and is gone when it is left, however that is.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WARMING = 1.0  # [s] until what was started is at work
ENDING = 5.0  # [s] that it may take to end
PERIOD = 100_000  # [us] of a quota, the kernel's usual one
CPU = "--cpu", str(CORES)
MEMORY = "--cache", str(-(-CORES // 2)), "--vm", str(-(-CORES // 2)), "--vm-bytes", "256m"


class Impossible(RuntimeError):
    """It cannot be had on this machine: not installed, or not permitted."""


@contextlib.contextmanager
def stress(*options: str) -> Iterator[None]:
    """Keep the machine busy by `stress-ng`.

    Args:
        options: As it takes them, like `CPU` and `MEMORY`.

    Raises:
        Impossible: It is not installed, or does not run.
    """
    program = shutil.which("stress-ng")
    if not program:
        raise Impossible("stress-ng is not installed")
    child = subprocess.Popen(
        [program, "--quiet", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(WARMING)
            raise Impossible(f"stress-ng {' '.join(options)} ended with code {code}")
        yield
    finally:
        end(child)


def end(child: subprocess.Popen) -> None:
    """End a process that leads a group, and the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(ENDING)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def home() -> tuple[Path, int]:
    """Where the control group of this process lies that has to do with processors.

    Returns:
        Its folder, and the version of control groups.

    Raises:
        Impossible: There is none.
    """
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError as error:
        raise Impossible(f"no control groups: {error}") from error
    for _, names, path in groups:
        if "cpu" in names.split(","):
            for _, mount, kind, options, *_ in mounts:
                if kind == "cgroup" and "cpu" in options.split(","):
                    return Path(mount) / path.lstrip("/"), 1
    for _, names, path in groups:
        for _, mount, kind, *_ in mounts:
            folder = Path(mount) / path.lstrip("/")
            if not names and kind == "cgroup2" and (folder / "cgroup.subtree_control").exists():
                if "cpu" in (folder / "cgroup.subtree_control").read_text().split():
                    return folder, 2
                raise Impossible("the control group of this process gives its children no CPU")
    raise Impossible("no control group that has to do with processors is mounted")


@contextlib.contextmanager
def quota(pids: list[int], share: float) -> Iterator[Callable[[], str]]:
    """Give processes only a share of one processor together, by a control group of their own.

    What it yields says how often they had to wait for it: a quota may be larger than what is used.

    Args:
        pids: Of the processes; they go back to where this one was.
        share: Of a processor.

    Raises:
        Impossible: It is not permitted.
    """
    parent, version = home()
    group = parent / f"adaptive-bench-{os.getpid()}"
    allowed = str(round(share * PERIOD))
    try:
        try:
            group.mkdir()
            if version == 1:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD))
                (group / "cpu.cfs_quota_us").write_text(allowed)
            else:
                (group / "cpu.max").write_text(f"{allowed} {PERIOD}")
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise Impossible(f"a control group is not permitted: {error}") from error

        def throttled() -> str:
            lines = (group / "cpu.stat").read_text().splitlines()
            counts = dict(line.split() for line in lines)
            return f"throttled in {counts['nr_throttled']} of {counts['nr_periods']} periods"

        yield throttled
    finally:
        for pid in pids:
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process; it goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
