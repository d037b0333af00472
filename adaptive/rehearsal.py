"""What calls cost, measured at the start: calls as they will be, that nothing is learned from.

Each takes up other streams than the last one and comes after a pause, so that neither the caches
nor the clock of the processor are warmer than in use. A bank of 512 streams of one channel on two
shared cores, one call each 3 ms: what was measured back to back, on one stream, in the process of
the model, was too little by 5.3 for the cheapest level and one sample, and by 1.8 for the full one
and 64, so that no slowdown that all calls share could make up for it. What is measured here was
wrong by -15 to 12 %, when the way there and back, which is reckoned apart now, still counted. With
a call each 10 ms all calls take 0 to 40 % longer still, with one each 30 ms small ones up to 2.6
times and large ones 1.3 times as long.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from adaptive.settings import BLOCK, BLOCKS, empty_block

SIZES = 1, 2, 4, 8, 16, BLOCK, 2 * BLOCK, BLOCKS * BLOCK  # of batches whose cost is measured
REPEATS = 9  # of each level and size
PAUSE = 3e-3  # [s] before each call

Call = tuple[int, int, Float[np.ndarray, "rows inputs"]]  # level, samples, what a call takes


def calls(
    levels: int, streams: int, channels: int, sizes: Sequence[int] = SIZES, repeats: int = REPEATS
) -> Iterator[Call]:
    """What to measure, in an order that is drawn: a slow moment is everybody's.

    Args:
        levels: How many the model has.
        streams: In the bank; they are taken up in turn.
        channels: Of each.
        sizes: Of batches.
        repeats: Of each level and size.
    """
    rng = np.random.default_rng(0)
    kinds = [(level, size) for level in range(levels) for size in sizes] * repeats
    at = 0
    for kind in rng.permutation(len(kinds)):
        level, size = kinds[kind]
        block = empty_block(channels, size)
        block[:size, 0] = np.arange(at, at + size) % streams
        block[:size, 1 : 1 + channels] = rng.normal(size=(size, channels))
        block[:size, 1 + channels :] = 1.0
        at += size
        yield level, size, block


class Laps:
    """How long the calls took."""

    def __init__(self) -> None:
        """None yet."""
        self.taken: dict[tuple[int, int], list[float]] = {}

    def add(self, level: int, size: int, lap: float) -> None:
        """Take note of one [s]."""
        self.taken.setdefault((level, size), []).append(lap)

    def costs(self) -> list[dict[int, float]]:
        """For each level the usual cost [s] of a call, by its samples.

        More samples never cost less than fewer: what says so was a slow moment.
        """
        made: list[dict[int, float]] = []
        for level in range(1 + max(level for level, _ in self.taken)):
            sizes = sorted(size for one, size in self.taken if one == level)
            usual = [float(np.median(self.taken[level, size])) for size in sizes]
            made.append(dict(zip(sizes, np.maximum.accumulate(usual).tolist(), strict=True)))
        return made
