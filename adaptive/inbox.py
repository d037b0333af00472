"""The way in: items from sources, what is wrong with them, and what transforms make of them."""

import asyncio
import logging
import random
from collections.abc import Callable
from math import inf, isfinite, isinf

from adaptive.bank import Origin, Track
from adaptive.outlet import RETRY_CAP, pause
from sensors.sample import Feedback, Item, Rejected, Sample, Source, Unavailable

LOG = logging.getLogger(__name__)
TURN = 32  # samples of a source that are taken in at once
BACKWARDS = 8  # samples in a row whose time may go back before the clock is believed
REPORT_EVERY = 10.0  # [s] between two log lines about the same kind of reject


class Inbox:
    """Takes items in and hands on the samples that are to be answered."""

    def __init__(
        self,
        tracks: dict[str, Track],
        queue: Callable[[Track, Sample, Origin, float], None],
        rng: random.Random,
    ):
        """Begin.

        Args:
            tracks: By the name of the stream.
            queue: Called with each sample, where it came from, and the time [s].
            rng: Draws the waits between attempts.
        """
        self.tracks, self._queue, self._rng = tracks, queue, rng
        self.rejected: dict[str, int] = {}  # what belongs to no stream, by reason
        self._last_report: dict[tuple[str, str], float] = {}

    async def ingest(self, source: Source) -> None:
        """Take in all that a source gives; while it is away, try again with full jitter."""
        clock, failures, away, taken = asyncio.get_running_loop().time, 0, False, 0
        while True:
            started = clock()
            try:
                async for item in source:
                    if away:
                        LOG.warning("%s: the source is back", names(source))
                        away = False
                    self._take(source, item, clock())
                    taken += 1
                    if taken % TURN == 0:  # of many that are there at once nobody else had a turn
                        await asyncio.sleep(0)
                break
            except Unavailable as error:
                failures = 1 if clock() - started > RETRY_CAP else failures + 1
                if not away:
                    LOG.warning("%s: the source is away: %s", names(source), error)
                    away = True
                await asyncio.sleep(pause(failures, self._rng))

    def _take(self, source: Source, item: Item, now: float) -> None:
        if isinstance(item, Sample):
            self._take_sample(source, item, now)
        elif isinstance(item, Feedback):
            if track := self.tracks.get(item.stream):
                track.feedback(item)
            else:
                self._reject(self._unknown(item.stream), now)
        else:
            self._reject(item, now)

    def _reject(self, item: Rejected, now: float) -> None:
        track = self.tracks.get(item.stream)
        if track:
            track.counters.reject(item.reason)
        else:
            self.rejected[item.reason] = self.rejected.get(item.reason, 0) + 1
        # Names that are not ours share one entry: anybody could send as many as they like.
        key = (item.stream if track else "", item.reason)
        if now - self._last_report.get(key, -inf) > REPORT_EVERY:
            self._last_report[key] = now
            LOG.warning("rejected (%s) %s: %s", item.reason, item.stream, item.detail)

    def _unknown(self, stream: str) -> Rejected:
        return Rejected(stream, "unknown_stream", f"have {', '.join(self.tracks)}")

    def _take_sample(self, source: Source, sample: Sample, now: float) -> None:
        track = self.tracks.get(sample.stream)
        if track is None:
            self._reject(self._unknown(sample.stream), now)
            source.answered(sample)
            return
        if problem := fault(track, sample):
            self._reject(Rejected(sample.stream, *problem), now)
            source.answered(sample)
            return
        # What came twice or from the past must not reach the transforms: they remember.
        if not track.counters.arrived(sample.sequence, sample.time):
            source.answered(sample)
            return
        if sample.time < track.newest:
            track.backwards += 1
            if track.backwards <= BACKWARDS:
                track.counters.give_up("time_backwards")
                source.answered(sample)
                return
            LOG.warning("%s: the sensor's clock went back, and stays there", sample.stream)
        track.newest, track.backwards = sample.time, 0
        track.state, made = track.chain.step(track.state, sample)
        track.counters.became(len(made))
        if not made:  # a transform has taken it in
            source.answered(sample)
        origin = Origin(source, sample, len(made))
        for one in made:
            self._queue(track, one, origin, now)


def names(source: Source) -> str:
    """What a source delivers, for the log."""
    return ", ".join(stream.name for stream in source.streams)


def fault(track: Track, sample: Sample) -> tuple[str, str] | None:
    """What is wrong with a sample, as reason and detail; None if nothing is."""
    wanted = len((track.raw or track.stream).channels)
    if sample.values.shape != (wanted,):
        return "channels", f"wanted {wanted} values, got {sample.values.shape}"
    if any(map(isinf, sample.values.tolist())):
        return "not_finite", f"sample {sample.sequence}: an infinite value; null means missing"
    if not isfinite(sample.time):
        return "not_finite", f"sample {sample.sequence}: its time is {sample.time}"
    return None
