"""The way of results out to one sink: kept while it is away, shed with a reason when too many."""

import asyncio
import logging
import random
from collections import deque
from itertools import islice

from adaptive.bank import Waiting
from adaptive.sinks import Result, Sink
from sensors.sample import Unavailable

LOG = logging.getLogger(__name__)
OUTBOX = 65536  # results that wait for a sink; then the oldest are shed
BATCH = 256  # results that a sink is given at once
RETRY, RETRY_CAP = 0.5, 30.0  # [s] between attempts at a source or sink that is away


class Outlet:
    """A sink and the results that wait for it."""

    def __init__(self, sink: Sink, rng: random.Random):
        """Begin with nothing waiting.

        Args:
            sink: Where results go.
            rng: Draws the waits between attempts.
        """
        self.sink = sink
        self.outbox: deque[tuple[Waiting, Result]] = deque()
        self._rng = rng
        self._ready = asyncio.Event()
        self._closing = False

    def put(self, waiting: Waiting, result: Result) -> None:
        """Hand in a result; the oldest of too many is shed."""
        self.outbox.append((waiting, result))
        self._ready.set()
        if len(self.outbox) > OUTBOX:
            shed(self.outbox.popleft()[0], "sink_full")

    def late(self, now: float) -> float:
        """For how long the result that waits longest has been past its deadline [s]."""
        return max(now - self.outbox[0][0].deadline, 0.0) if self.outbox else 0.0

    def end(self) -> None:
        """Have `run` return as soon as all results are out."""
        self._closing = True
        self._ready.set()

    async def run(self) -> None:
        """Hand results to the sink; while it is away, keep them and try again with full jitter."""
        clock, failures = asyncio.get_running_loop().time, 0
        while self.outbox or not self._closing:
            if not self.outbox:
                self._ready.clear()
                await self._ready.wait()
                continue
            batch = list(islice(self.outbox, BATCH))
            try:
                await self.sink.write([result for _, result in batch])
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    LOG.warning("%s is away: %s", type(self.sink).__name__, error)
                await asyncio.sleep(pause(failures, self._rng))
                continue
            if failures:
                LOG.warning("%s is back", type(self.sink).__name__)
                failures = 0
            now = clock()
            for waiting, result in batch:
                # Results may have been shed at this end while the sink was slow.
                if self.outbox and self.outbox[0][0] is waiting:
                    self.outbox.popleft()
                    delivered(waiting, result, now)

    def give_up(self) -> None:
        """Shed what is left at the end."""
        while self.outbox:
            shed(self.outbox.popleft()[0], "stopped")

    async def close(self) -> None:
        """Close the sink; what goes wrong then is only logged, for all results are settled."""
        try:
            await self.sink.close()
        except Exception:
            LOG.exception("%s could not be closed", type(self.sink).__name__)


def delivered(waiting: Waiting, result: Result, now: float) -> None:
    """Take note that one sink has a result; with the last one the sample is answered."""
    waiting.sinks -= 1
    if waiting.sinks == 0:
        waiting.account(result.answer.estimate.level, now)


def shed(waiting: Waiting, reason: str) -> None:
    """Give up a result that one sink cannot take; once for each sample."""
    if waiting.sinks > 0:
        waiting.sinks = -1  # no other sink accounts for it
        waiting.give_up(reason)


def pause(failures: int, rng: random.Random) -> float:
    """Draw how long to wait after so many failures in a row [s].

    References:
        Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015: "full jitter".
    """
    return rng.uniform(0.0, min(RETRY * 2.0 ** min(failures - 1, 16), RETRY_CAP))
