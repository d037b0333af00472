"""An event loop in virtual time, for tests and replays that must not wait."""

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: moves the clock instead."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.now = start

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.get_map():  # the first one is asyncio's own, to be woken by
            raise RuntimeError(
                "a VirtualTimeLoop has no real sockets or pipes: its clock would not wait for "
                "them. Run this under asyncio.run."
            )
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise RuntimeError("everything waits, and no timer is set: it would hang for ever")
        if timeout > 0:
            self.now = max(self.now + timeout, math.nextafter(self.now, math.inf))
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when nothing else can run.

    What would run in a thread runs at once, in place. Real sockets raise.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._jumping = _JumpingSelector(start)
        super().__init__(self._jumping)

    @property
    def _clock_resolution(self) -> float:
        # asyncio runs timers that are due before now plus this. Far from 0 its own value, 1 ns,
        # is lost in rounding; then a timer that is due right now would never run.
        return max(1e-9, 2.0 * math.ulp(self._jumping.now))

    @_clock_resolution.setter
    def _clock_resolution(self, value: float) -> None:
        pass

    def time(self) -> float:
        """Tell the virtual time [s]."""
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future:
        """Call `func` now."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def virtual_run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run like `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
