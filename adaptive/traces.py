"""What was recorded of a real machine: how slow it was, and how calls scattered about that.

A call of a level v begun at t took, to its nominal cost,

    x_v(t) = c_v exp(xi_t + r_v),

with the slowdown xi of all levels, taken from those of the cheapest level that were recorded
about then, and a residual r that depends on nothing but the level. Both are assumed: residuals are
drawn in blocks from the whole recording, of all levels from the same moments. What is constant, c,
is known from the machine when it was idle, so if a load slows one level more than another down,
that is in its residuals. A call that lost the processor for a while is taken for one that was so
many times slower, so worlds are harder on calls with many samples than the machine was.

Other work shared the two cores with all recordings; those under a load are of a machine in a bad
hour: one call in ten took 4 to 10 times as long as nominal, one in a hundred 17 to 33 times. The
file says, under `about`, what load there was.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FILE = Path(__file__).with_name("traces.npz")  # of `adaptive.recording`
PARTS = TUNING, HELD_OUT = "tuning", "held out"
LOADS = "idle", "busy", "memory"
NEAR = 2  # calls of the cheapest level before and behind one that say how slow it was then
BLOCK = 32  # residuals that are drawn together


class Trace(NamedTuple):
    """A recording."""

    time: Float[np.ndarray, " probes"]  # [s] of the calls of the cheapest level
    slow: Float[np.ndarray, " probes"]  # [nats] of all levels
    residuals: tuple[np.ndarray, ...]  # [nats] of the calls of each level, in their order

    def slowdown(
        self, times: Float[np.ndarray, " times"], start: float
    ) -> Float[np.ndarray, " times"]:
        """How slow it is at some times [nats], if the recording begins at a moment [s] of its own.

        It begins anew when it is over.
        """
        return np.interp((times + start) % self.time[-1], self.time, self.slow)

    def noise(
        self, samples: int, levels: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "samples levels"]:
        """Draw residuals of calls [nats].

        Args:
            samples: How many.
            levels: Of the model; the recording's last one stands for any beyond.
            rng: Draws the blocks.
        """
        where = np.repeat(rng.random(-(-samples // BLOCK)), BLOCK)[:samples]
        within = np.arange(samples) % BLOCK
        known = [self.residuals[min(level, len(self.residuals) - 1)] for level in range(levels)]
        return np.stack(
            [one[(where * (len(one) - BLOCK)).astype(int) + within] for one in known], axis=1
        )


@cache
def trace(load: str, part: str = TUNING) -> Trace:
    """Read a recording.

    Args:
        load: One of `LOADS`, on the machine.
        part: One of `PARTS`.
    """
    with np.load(FILE) as found:
        idle, sizes = found[f"{part}/idle/ratio"], int(found["sizes"])
        time, ratio, kind = (found[f"{part}/{load}/{name}"] for name in ("time", "ratio", "kind"))
        usual, kinds = idle.astype(float), found[f"{part}/idle/kind"]
    constant = np.array([np.median(usual[kinds == one]) for one in range(kinds.max() + 1)])
    time, left = time.astype(float), ratio.astype(float) - constant[kind]
    level = kind // sizes
    probe, at = left[level == 0], time[level == 0]
    around = np.pad(probe, NEAR, mode="edge")
    slow = np.median(np.lib.stride_tricks.sliding_window_view(around, 2 * NEAR + 1), axis=1)
    left = left - np.interp(time, at, slow)
    residuals = tuple(left[level == one] for one in range(level.max() + 1))
    return Trace(at - at[0], slow, residuals)
