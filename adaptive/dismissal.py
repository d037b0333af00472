"""What an operator has dismissed goes quiet: alarms that begin like a dismissed one are not raised.

What is compared is not the signal but what its forecast left, in units of the usual: the same
pattern then looks the same whatever it rides on. A pattern is what was left around an alarm that
the operator answered. The newest samples are like it if somewhere along it

    d = |a - b|^2 / (|a|^2 + |b|^2)  =  1 - 2 a.b / (a.a + b.b)

is small: 0 for the same, 1 for unrelated ones. As it is asked anew with each sample, what begins
like a dismissed pattern and goes on otherwise is raised when it parts from it; and what is nearer
to a confirmed one is raised at once.
"""

from collections.abc import Sequence
from math import isfinite, sqrt

import numpy as np
from jaxtyping import Float, Int

LENGTH = 32  # [samples] that are compared
FOLLOW = 96  # [samples] of a pattern after its alarm
SMOOTH = 4  # [samples] of a running mean: onsets are never in step to the sample
ALIKE = 0.35  # distance
NEAR = 96  # [samples] between an alarm and the label that answers it
KEPT = 64  # patterns of each kind, and alarms that may still be answered; the newest
LARGEST = 256  # patterns times channels: to look through them takes a millisecond
SLOW = 2000  # [samples] of the mean square of what forecasts leave
CUT = 30.0  # [usual errors]
BURN_IN = 100  # [samples] before anything is known


class Dismissals:
    """The dismissed and confirmed alarms of one stream."""

    def __init__(self, memory: int, channels: int):
        """Start with nothing dismissed.

        Args:
            memory: How far back an answer may reach [samples].
            channels: Of the stream.
        """
        length = memory + LENGTH + FOLLOW + NEAR
        self.left = np.zeros((length, channels), np.float32)  # ring, in usual errors
        self.square = [0.0] * channels  # mean square of what forecasts leave
        self.count = 0
        # By the first row of an incident, the quiet ones too: 1 << label of its answers, how many
        # of its alarms count, 1 while they are left out as confirmed, and the first sample that
        # the newest answer is of.
        self.alarms: dict[int, tuple[int, int, int, int]] = {}
        self.waiting: list[tuple[int, int]] = []  # (row of an alarm, label), to be seen whole
        self.kept = max(min(KEPT, LARGEST // channels), 4)
        self.patterns = [np.zeros((0, LENGTH + FOLLOW, channels), np.float32) for _ in (0, 1)]

    def observe(self, index: int, left: Sequence[float]) -> None:
        """Take in what the forecast of a sample left, NaN where nothing was measured."""
        row, rate = [], max(1.0 / (index + 1), 1.0 / SLOW)
        for c, x in enumerate(left):  # in plain Python, which beats NumPy for a few channels
            x, usual = x if isfinite(x) else 0.0, sqrt(self.square[c]) + 1e-300
            if index > BURN_IN:
                x = min(max(x, -CUT * usual), CUT * usual)
            self.square[c] += rate * (x * x - self.square[c])
            row.append(x / usual)
        self.left[index % len(self.left)] = row if index > BURN_IN else 0.0
        self.count = index + 1
        if self.waiting and self.waiting[0][0] + FOLLOW < self.count:
            row, label = self.waiting.pop(0)
            self.patterns[label] = np.concatenate(
                (self.patterns[label], self._smooth(row + FOLLOW, LENGTH + FOLLOW)[None])
            )[-self.kept :]

    def known(self) -> bool:
        """Whether the newest samples are like a dismissed pattern, and more than a confirmed one.

        To be asked of what would be an alarm; the first sample of an incident is remembered.
        """
        now = self.count - 1
        first = next(reversed(self.alarms), None)
        if first is None or now > first + FOLLOW:
            self.alarms[now] = 0, 0, 0, -1
            if len(self.alarms) > KEPT:
                del self.alarms[next(iter(self.alarms))]
        if not len(self.patterns[0]):
            return False
        newest = self._smooth(now, LENGTH)
        dismissed, confirmed = (distance(newest, patterns) for patterns in self.patterns)
        return dismissed < min(ALIKE, confirmed)

    def count_alarm(self) -> int:
        """Count an alarm of the newest incident; return 1 if it is confirmed, so not to count."""
        first = next(reversed(self.alarms))
        answers, raised, out, about = self.alarms[first]
        self.alarms[first] = answers, raised + 1, out, about
        return out

    def learn(self, indices: Int[np.ndarray, " samples"], label: int) -> int:
        """Learn what an operator said, if there was an alarm near; once of each alarm.

        What was said otherwise of the same samples before is forgotten: people change their minds.

        Args:
            indices: Numbers of the samples that the label is of.
            label: 1: an event; 0: dismissed.

        Returns:
            How many alarms are to be left out as confirmed; negative for those that were.
        """
        confirmed = 0
        oldest = self.count - len(self.left) + LENGTH + SMOOTH
        for row, (answers, raised, out, about) in self.alarms.items():
            if not indices[0] - NEAR <= row <= indices[-1] + NEAR or row < oldest:
                continue
            confirmed += raised * (label - out)
            if about == indices[0] and out != label:
                self._forget(row, 1 - label)
                answers &= 1 << label
            self.alarms[row] = answers | 1 << label, raised, label, int(indices[0])
            if not answers & 1 << label:
                self.waiting.append((row, label))
        self.waiting.sort()
        return confirmed

    def _forget(self, row: int, label: int) -> None:
        """Forget what was said of an alarm."""
        if (row, label) in self.waiting:
            self.waiting.remove((row, label))
            return
        pattern = self._smooth(row + FOLLOW, LENGTH + FOLLOW)
        is_other = (self.patterns[label] != pattern).any(axis=(1, 2))
        self.patterns[label] = self.patterns[label][is_other]

    def _smooth(self, last: int, rows: int) -> Float[np.ndarray, "rows channels"]:
        """The running mean of the rows up to `last`."""
        at = np.arange(last - rows - SMOOTH + 2, last + 1) % len(self.left)
        total = np.cumsum(self.left[at], axis=0)
        total = np.concatenate((np.zeros((1, total.shape[1])), total))
        return (total[SMOOTH:] - total[:-SMOOTH]) / SMOOTH

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything that outlives a restart, as arrays."""
        return {
            "left": self.left,
            "square": np.array(self.square),
            "count": np.array(self.count),
            "alarms": np.array(
                [(row, *known) for row, known in self.alarms.items()], np.int64
            ).reshape(-1, 5),
            "waiting": np.array(self.waiting, np.int64).reshape(-1, 2),
            "dismissed": self.patterns[0],
            "confirmed": self.patterns[1],
        }

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Take up where `snapshot` was made."""
        self.left, self.square = np.array(saved["left"]), saved["square"].tolist()
        self.count = int(saved["count"])
        self.alarms = {row: tuple(known) for row, *known in saved["alarms"].tolist()}
        self.waiting = [(int(row), int(label)) for row, label in saved["waiting"]]
        self.patterns = [np.array(saved["dismissed"]), np.array(saved["confirmed"])]


def distance(
    newest: Float[np.ndarray, "length channels"],
    patterns: Float[np.ndarray, "patterns rows channels"],
) -> float:
    """The least distance of the newest samples to a stretch of a pattern; 2 if there is none."""
    if not len(patterns):
        return 2.0
    rows = patterns.shape[1] - len(newest) + 1
    product = np.zeros((len(patterns), rows))
    for k, x in enumerate(newest):
        product += patterns[:, k : k + rows] @ x
    total = np.cumsum((patterns**2).sum(axis=2), axis=1)
    square = total[:, len(newest) - 1 :].copy()
    square[:, 1:] -= total[:, : rows - 1]
    return float((1 - 2 * product / (square + (newest**2).sum() + 1e-12)).min())
