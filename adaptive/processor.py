"""Which processors an agent and its models run on, and who goes first."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LOG = logging.getLogger(__name__)
# Those that this process may use at all, as it was started.
HAVE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# [s] after which a thread hands the interpreter on. By default it is ten times as long, and so late
# is the event loop whenever a thread encodes a checkpoint: see `tests/benchmarks/stall.py`.
TURN = 5e-4
PRIORITY = 1  # the least of those in real time: above all that is not


def check(cpus: Sequence[int]) -> None:
    """Make sure that processors can be used.

    Raises:
        ValueError: They cannot.
    """
    if cpus and not HAVE:
        raise ValueError(
            f"wanted to run on the processors {list(cpus)}, but this system (it is {sys.platform}) "
            "does not let a program choose. Leave it empty."
        )
    if missing := sorted(set(cpus) - set(HAVE)):
        raise ValueError(
            f"must be of the processors that this process may use, which are {HAVE}, got "
            f"{list(cpus)}: {missing} is not there. Name others, or leave it empty."
        )


def confine(cpus: Sequence[int]) -> None:
    """Have all threads of this process run on these processors; on any if there are none."""
    for thread in Path("/proc/self/task").iterdir() if cpus else ():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cpus)


@contextmanager
def confined(cpus: Sequence[int]) -> Iterator[None]:
    """Have processes that this thread starts meanwhile run on these, from their first moment."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def first(realtime: bool) -> Iterator[None]:
    """Have this thread go first: before other threads here and, in real time, before all else.

    Threads and processes that it starts are not in real time. Where that is refused it is said in
    the log, and the rest holds.
    """
    turn, real = sys.getswitchinterval(), False
    sys.setswitchinterval(TURN)
    if realtime:
        try:
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(PRIORITY))
            real = True
        except (OSError, AttributeError) as error:
            LOG.warning(
                "agent.realtime: the system refuses it (%s), so the agent runs like any other "
                "program. It takes the right CAP_SYS_NICE or a limit `rtprio` of %d at least.",
                error,
                PRIORITY,
            )
    try:
        yield
    finally:
        sys.setswitchinterval(turn)
        if real:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
