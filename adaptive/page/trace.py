"""What comes of a stream between two messages to somebody who looks at it."""

from collections import deque
from typing import Any

import numpy as np

from adaptive.page.view import CHANNELS
from adaptive.sinks import Result

KEPT, SHOWN = 2048, 256  # points between two messages; in one


class Trace:
    """Keeps the newest points of a stream until they are taken.

    A point is a sample with its score and the forecast that was made for it, which is the one made
    with the sample before.
    """

    def __init__(self, channels: int):
        """Begin with none.

        Args:
            channels: Of the stream; the first few are kept.
        """
        self.points: deque[tuple[float, float, np.ndarray]] = deque(maxlen=KEPT)
        self._nothing = np.full((2, min(channels, CHANNELS)), np.nan)
        self._ahead, self._after = self._nothing, 0

    def show(self, result: Result) -> None:
        """Keep a point."""
        sample, answer = result.sample, result.answer
        ahead = self._ahead if sample.sequence <= self._after else self._nothing
        point = np.vstack((sample.values[: ahead.shape[1]], ahead))
        self.points.append((sample.time, answer.score, point))
        forecast, spread = answer.estimate.forecast[0], answer.estimate.spread[0]
        self._ahead = np.stack((forecast[:CHANNELS], spread[:CHANNELS]))
        self._after = sample.sequence + 1

    def take(self) -> dict[str, Any]:
        """Return the points since the last time, every so many of too many; they are forgotten.

        Returns:
            `time` and `score` of each; of each channel its `values`, `forecast` and `spread`.
        """
        points = list(self.points)
        self.points.clear()
        some = points[:: -(-len(points) // SHOWN) or 1]
        each = np.array([point for _, _, point in some]).reshape(-1, 3, self._nothing.shape[1])
        values, forecast, spread = each.transpose(1, 2, 0).tolist()
        return {
            "time": [time for time, _, _ in some],
            "score": [score for _, score, _ in some],
            "values": values,
            "forecast": forecast,
            "spread": spread,
        }
