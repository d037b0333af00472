"""Answers on their way out: one for each sample, those of a stream in the order of its samples.

What the model gave is settled and handed to the sinks while its next call is at work already, a few
at a time, so that samples that come meanwhile need not wait for all of it. With 64 streams that
takes half as long as the call.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptive.bank import Bank, Track, Waiting
from adaptive.controller import MANDATORY, Call, Estimate
from adaptive.outlet import Outlet
from adaptive.sinks import Result

AT_ONCE = 16  # answers that are handed on before all else has a turn


class Landed(NamedTuple):
    """What a call gave."""

    bank: Bank
    call: Call
    packed: np.ndarray
    waiting: list[Waiting]
    wanted: list[bool]  # not answered meanwhile


class Publisher:
    """Settles answers and hands them to the outlets."""

    def __init__(self, outlets: Sequence[Outlet]):
        """Begin with nothing on its way.

        Args:
            outlets: Where results go.
        """
        self.outlets = outlets
        self._landed: deque[Landed] = deque()
        self._estimated: deque[tuple[Waiting, Estimate]] = deque()  # comes before all that landed
        self._some = asyncio.Event()

    async def run(self) -> None:
        """Hand on what has landed, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._landed or self._estimated:
                self.flush(AT_ONCE)
                await asyncio.sleep(0)

    def pending(self) -> Iterator[Waiting]:
        """Samples whose answer is certain, and not handed on yet."""
        yield from (waiting for waiting, _ in self._estimated)
        for landed in self._landed:
            yield from (one for one, new in zip(landed.waiting, landed.wanted, strict=True) if new)

    def land(self, bank: Bank, call: Call, packed: np.ndarray) -> None:
        """Take what a call gave to what a bank's model had in its hands.

        What is left of the call before is handed on first: what cannot keep up is not to lag on.

        Args:
            bank: Whose.
            call: As its controller made it.
            packed: As its engine gave it.
        """
        self.flush()
        sound = np.all(np.isfinite(packed), axis=1).tolist()
        wanted = [self._settled(one, refined=ok) for one, ok in zip(bank.taken, sound, strict=True)]
        for waiting, new in zip(bank.taken, wanted, strict=True):
            waiting.track.landed += new
        self._landed.append(Landed(bank, call, packed, bank.taken, wanted))
        bank.taken = []
        self._some.set()

    def flush(self, most: int | None = None) -> None:
        """Hand on so many of the answers that have landed; all if None."""
        now = asyncio.get_running_loop().time()
        while self._estimated or self._landed:
            if not self._estimated:
                bank, call, packed, waiting, wanted = self._landed[0]
                estimates = bank.controller.finish(call, packed)
                for one, estimate, new in zip(waiting, estimates, wanted, strict=True):
                    one.track.loss = estimate.loss
                    if new:
                        if estimate.level == MANDATORY:
                            one.track.counters.because("unsound")
                        self._estimated.append((one, estimate))
                self._landed.popleft()
            while self._estimated:
                if most == 0:
                    return
                most = None if most is None else most - 1
                self._hand_on(*self._estimated[0], now)
                one, _ = self._estimated.popleft()
                one.track.landed -= 1

    def simple(self, waiting: Waiting, now: float, why: str) -> None:
        """Publish the mandatory answer to a sample, unless it has one.

        Args:
            waiting: The sample.
            now: [s].
            why: Of `Counters.reasons`.
        """
        if not self._settled(waiting, refined=False):
            return
        if waiting.track.landed:  # the older ones first
            self.flush()
        waiting.track.counters.because(why)
        self._hand_on(waiting, waiting.track.bank.controller.mandatory(waiting.queued), now)

    def simple_all(self, track: Track, now: float, why: str, last: Waiting | None = None) -> None:
        """Publish the mandatory answers to a stream's samples, in their order, up to the last."""
        line = track.line
        for waiting in track.bank.taken if line.taken else ():
            if waiting.track is track:
                self.simple(waiting, now, why)
        for waiting in [last] if last else list(line.queue)[len(line.queue) - line.unanswered :]:
            self.simple(waiting, now, why)

    def give_up(self) -> None:
        """Shed what is left at the end."""
        for waiting in self.pending():
            waiting.give_up("stopped")
        self._estimated.clear()
        self._landed.clear()

    def _settled(self, waiting: Waiting, *, refined: bool) -> bool:
        """Say whether this is to be the answer to a sample; from now on it has one."""
        if waiting.answered:
            return False
        waiting.answered = True
        waiting.line.answered(refined)
        return True

    def _hand_on(self, waiting: Waiting, estimate: Estimate, now: float) -> None:
        """Make the answer of an estimate and give it to the sinks."""
        waiting.published = now
        track, sample = waiting.track, waiting.sample
        controller = track.bank.controller
        answer = controller.settle(estimate, sample.time, sample.values)
        track.seen(estimate.index, sample.time)
        track.level, track.score = estimate.level, answer.score
        name = "mandatory"
        if estimate.level != MANDATORY:
            name = controller.levels[estimate.level].name
        channels = track.stream.channels
        result = Result(sample, answer, name, waiting.arrival, waiting.deadline, channels)
        if answer.alarm:
            track.counters.alarms += 1
            track.alarms.append(result)
        track.counters.dismissed += answer.dismissed
        for show in track.onlookers:
            show(result)
        waiting.sinks = len(self.outlets)
        for outlet in self.outlets:
            outlet.put(waiting, result)
        if not self.outlets:
            waiting.account(estimate.level, now)
