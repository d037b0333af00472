"""Reference cycles are collected when there is time: never while something waits for an answer.

What exists when the work begins is frozen, so that no collection looks at it again, and automatic
collections are turned off, not what they do: the interpreter goes on counting what is made, and
JAX goes on clearing up with each collection (it hangs on them). Young objects take some tenths of a
millisecond and are looked at in any pause; full collections wait for a pause that is longer than
they have been known to take, but not without end, because what they would free is memory.
"""

import gc
from collections.abc import Callable
from typing import NamedTuple

YOUNG, MOST_YOUNG = 1000, 20_000  # objects more than before: due; collected whatever waits
MIDDLE = 10  # young collections before the next generation
OLD, MOST_OLD = 10, 40  # of these before a full collection is due; before it waits no longer
EVERY, AT_LEAST = 300.0, 1200.0  # [s] after which a full one is due; after which it must be
LEAST = 1e-3  # [s] that a full collection is thought to take, if none has taken longer
SAFE = 2.0  # pauses must be longer than full collections by this factor
FORGET = 0.9  # how much is left of the longest with each further one


class Collections(NamedTuple):
    """What is told of them."""

    full: int  # since the work began, whoever asked for them
    waited: int  # of these: something was waiting when it began, or when it ended
    longest_ms: float  # of the full ones

    @property
    def text(self) -> str:
        """The same in words."""
        some = f", the longest took {self.longest_ms:.1f} ms" if self.full else ""
        return f"{self.full} full collections, {self.waited} while something waited{some}"


class Collector:
    """Collects the garbage of this process, in the thread that calls."""

    def __init__(self, clock: Callable[[], float]):
        """Collect nothing yet.

        Args:
            clock: Tells the time [s].
        """
        self.clock = clock
        self.waited, self.longest, self._usual = 0, 0.0, 0.0
        self._before, self._full_ones, self._last = 0, 0, 0.0
        self._ours = False

    def start(self) -> None:
        """Freeze what exists; from now on nothing is collected but by `rest`."""
        if not self._ours:
            gc.disable()
            self._ours = True
        gc.collect()
        gc.freeze()
        # Of what exists now most has just been frozen: what is left is what takes time from now on.
        before = self.clock()
        gc.collect()
        self._last = self.clock()
        self._usual = max(self._last - before, LEAST)
        self._before = collected()

    def stop(self) -> None:
        """Leave it to the interpreter again."""
        if self._ours:
            self._full_ones = collected() - self._before
            gc.unfreeze()
            gc.enable()
            self._ours = False

    def rest(self, busy: Callable[[float], bool]) -> None:
        """Use a pause, if there is one and something to be collected.

        Args:
            busy: Whether something waits, or will within so many seconds; it may wait that long
                to find out.
        """
        if not self._ours:
            return
        young, middle, old = gc.get_count()
        since = self.clock() - self._last
        if young < YOUNG and old < OLD and since < EVERY:
            return
        waits = busy(0.0)
        must = old >= MOST_OLD or since >= AT_LEAST
        if must or ((old >= OLD or since >= EVERY) and not waits and not busy(SAFE * self._usual)):
            self._full(waits, busy)
        elif young >= (MOST_YOUNG if waits else YOUNG):
            gc.collect(1 if middle >= MIDDLE else 0)

    def _full(self, waits: bool, busy: Callable[[float], bool]) -> None:
        before = self.clock()
        gc.collect()
        self._last = self.clock()
        took = self._last - before
        self.longest, self._usual = max(self.longest, took), max(FORGET * self._usual, took, LEAST)
        self.waited += waits or busy(0.0)

    def told(self) -> Collections:
        """How many there were."""
        full = collected() - self._before if self._ours else self._full_ones
        return Collections(full, self.waited, 1e3 * self.longest)


def collected() -> int:
    """How many full collections this process has seen, automatic ones among them."""
    return gc.get_stats()[2]["collections"]
