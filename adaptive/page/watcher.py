"""Somebody who looks at the page, and what is shown to them: a bounded piece of work at a time.

However many streams there are, a step looks at a few of them, and at one part of what is not about
a single stream; a message is made of what was seen last.
"""

from heapq import nlargest
from math import inf
from typing import Any

from adaptive.bank import Track
from adaptive.health import Health
from adaptive.loop import Loop
from adaptive.page import view
from adaptive.page.trace import Trace
from adaptive.telemetry import Counters

LISTED = 50  # streams, at most
BANKS = 8  # that are shown, at most
AT_ONCE, LINES = 64, 16  # streams that a step looks at; lines that it makes
PACE = 4  # steps in which every part is looked at once, at most


class Survey:
    """Goes over all streams, again and again: what they add up to, and which to look at first.

    Each stream is added up at another moment, at which its own account is right; so that of all of
    them is right, too.

    Attributes:
        sums: Of each bank, as of the last time round.
        best: The streams to be listed: the newest alarm first, then those with most misses.
        found: How many have the text in their name.
        rate: Of all samples that come [Hz].
        at: When it went round last [s]; -infinite before the first.
    """

    def __init__(self, loop: Loop, find: str):
        """Begin.

        Args:
            loop: Of the agent.
            find: A text that the listed streams have in their name.
        """
        self.tracks, self.find = list(loop.tracks.values()), find.casefold()
        self.sums = [Counters() for _ in loop.banks]
        self.best, self.found, self.rate, self.at = [], 0, 0.0, -inf
        self._places = {id(bank): n for n, bank in enumerate(loop.banks)}
        self._begin()

    def _begin(self) -> None:
        self._next, self._found, self._rate = 0, 0, 0.0
        self._sums = [Counters() for _ in self._places]
        self._best: list[tuple[float, int, int]] = []

    def step(self, now: float) -> None:
        """Look at the next streams."""
        some = self.tracks[self._next : self._next + AT_ONCE]
        keys = []
        for n, track in enumerate(some, self._next):
            self._sums[self._places[id(track.bank)]].include(track.counters)
            self._rate += track.rate.at(now)
            if self.find in track.stream.name.casefold():
                last = track.alarms[-1].arrival if track.alarms else -inf
                keys.append((last, track.counters.missed, -n))
        self._found += len(keys)
        self._best = nlargest(LISTED, self._best + keys)
        self._next += len(some)
        if self._next == len(self.tracks):
            self.sums, self.found, self.rate, self.at = self._sums, self._found, self._rate, now
            self.best = [self.tracks[-n] for *_, n in self._best]
            self._begin()


class Watcher:
    """What one of those who look is shown."""

    def __init__(self, loop: Loop, health: Health, started: float, find: str, chosen: Track | None):
        """Begin; nothing is kept of a stream before `open`.

        Args:
            loop: Of the agent.
            health: Of the agent.
            started: When it began [s].
            find: A text that the listed streams have in their name.
            chosen: The stream that is looked at.
        """
        self.loop, self.health, self.started, self.chosen = loop, health, started, chosen
        self.survey = Survey(loop, find)
        self.trace = Trace(len(chosen.stream.channels)) if chosen else None
        self._lines: dict[str, dict[str, Any]] = {}
        self._parts: list[Any] = [None] * (min(len(loop.banks), BANKS) + 1)
        self._alarms: tuple[int, list[dict[str, Any]]] = -1, []
        self._steps = 0

    def open(self) -> None:
        """Keep what comes of the chosen stream from now on."""
        if self.chosen and self.trace:
            self.chosen.onlookers += (self.trace.show,)

    def close(self) -> None:
        """Keep nothing any more."""
        if self.chosen and self.trace:
            others = [show for show in self.chosen.onlookers if show != self.trace.show]
            self.chosen.onlookers = tuple(others)

    @property
    def complete(self) -> bool:
        """Whether everything has been looked at once."""
        return self.survey.at > -inf and all((*self._parts, *self._lines.values()))

    def step(self, now: float) -> None:
        """Look at what is next.

        Args:
            now: [s].
        """
        self.survey.step(now)
        self._look_at_streams(now)
        if self.survey.at > -inf:
            self._look_at_parts()
        self._steps += 1

    def _look_at_streams(self, now: float) -> None:
        best = self.survey.best
        self._lines = {t.stream.name: self._lines.get(t.stream.name, {}) for t in best}
        new = [track for track in best if not self._lines[track.stream.name]]
        every = -(-len(best) // LINES) or 1
        for track in new[:LINES] or best[self._steps % every :: every]:
            self._lines[track.stream.name] = view.row(track, now)

    def _look_at_parts(self) -> None:
        """Look at one of the banks, or at the agent."""
        *banks, agent = range(len(self._parts))
        place = self._steps % max(PACE, len(self._parts))
        if place == agent:
            found = view.agent(self.loop, self.health)
            self._parts[agent] = found | {"budgets": view.budgets(self.loop.banks)}
        elif place in banks:
            sums, at = self.survey.sums[place], self.survey.at
            self._parts[place] = view.governed(self.loop.banks[place], sums, at)

    def message(self, now: float) -> dict[str, Any]:
        """Say what was seen last.

        Args:
            now: [s].
        """
        survey, whole = self.survey, Counters()
        for sums in survey.sums:
            whole.include(sums)
        *banks, agent = self._parts
        return {
            "now_s": now,
            "running_s": now - self.started,
            **view.able(self.loop, self.health, now),
            "rate_hz": survey.rate,
            "streams": {
                "in_all": len(survey.tracks),
                "found": survey.found,
                "lines": list(self._lines.values()),
            },
            "chosen": self._chosen(now),
            "banks": banks,
            "banks_in_all": len(self.loop.banks),
            "account": view.account(whole, self.loop.inbox.rejected),
            "agent": agent,
        }

    def _chosen(self, now: float) -> dict[str, Any] | None:
        """The stream that is looked at."""
        track, trace = self.chosen, self.trace
        if not (track and trace):
            return None
        if self._alarms[0] != track.counters.alarms:
            self._alarms = track.counters.alarms, view.alarms(track)
        labels = zip(self._alarms[1], view.labels(track), strict=True)
        alarms = [alarm | {"label": label} for alarm, label in labels]
        about = view.row(track, now) | view.about(track)
        return about | {"last_alarms": alarms, "points": trace.take()}
