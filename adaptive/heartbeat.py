"""The event loop's pulse: how late it is, and an alarm when it stands still."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable

from adaptive.telemetry import Quantiles

LOG = logging.getLogger(__name__)
EVERY = 0.025  # [s] between two beats
GLANCE, GLANCES = 0.25, 4  # [s] between two looks at it; so many without a beat are a stall


class Heartbeat:
    """Beats while the event loop runs; a thread of its own notices when it does not.

    Attributes:
        lag: [s] of each beat, how late it was; a timer's millisecond is in it.
        newest: [s] of the last beat, how late it was.
        stalls: How often it stood still for about a second.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None):
        """Do not beat yet.

        Args:
            beat: Called with each beat.
        """
        self.lag, self.newest, self.stalls, self._beat = Quantiles(), 0.0, 0, beat
        self._beats = 0
        self._over = threading.Event()

    async def run(self) -> None:
        """Beat until cancelled."""
        clock, self._over = asyncio.get_running_loop().time, threading.Event()
        about = threading.get_ident(), self._over
        threading.Thread(target=self._watch, args=about, name="watchdog", daemon=True).start()
        try:
            while True:
                due = clock() + EVERY
                await asyncio.sleep(EVERY)
                self._beats += 1
                self.newest = max(clock() - due, 0.0)
                self.lag.add(self.newest)
                self._beat()
        finally:
            self._over.set()

    def _watch(self, thread: int, over: threading.Event) -> None:
        """Look whether it beats; by its own glances, so that a machine asleep is no stall."""
        seen, without = self._beats, 0
        while not over.wait(GLANCE):
            without = without + 1 if self._beats == seen else 0
            seen = self._beats
            if without == GLANCES:
                self.stalls += 1
                frame = sys._current_frames().get(thread)
                where = "".join(traceback.format_stack(frame)) if frame else "it has ended"
                LOG.warning(
                    "the event loop has stood still for %.1f s; no answer can be given until it "
                    "goes on. It is at\n%s",
                    GLANCE * GLANCES,
                    where,
                )
