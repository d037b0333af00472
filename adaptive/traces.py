"""What was recorded of a real machine: how slow it was, and how calls scattered about that.

A call of a level v begun at t took, where it nominally takes c,

    x_v(t) = c exp(xi_t + r_v) + s_v,

with the slowdown xi of all levels, and a residual. One that is small is a ratio r; in one that is
not the call stood still for a time s, which does not grow with the call: it lost the processor, or
waited for it. On a crowded host, beside `stress-ng` on every core, that befell 24 to 40 % of the
calls, for 1.5 to 8 ms (10 to 90 %), of .3 ms as of 2 ms, while nine tenths of xi lay within a
quarter of a nat. So xi is what the fastest tenth of the calls that were recorded about then had in
common. What is constant, c, is known from the machine when it was idle.

It is assumed that residuals depend on nothing but the level: they are drawn in blocks from the
whole recording, of all levels from the same moments. Longer calls stand still more often; that is
in those of a level, but not in those of larger batches than were recorded.

There are recordings of a host that others left alone, and of one that was crowded, where other
work shared the two cores with all recordings and what calls took is with the way there and back.
Each file says, under `about`, what load there was.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FILE = Path(__file__).with_name("traces.npz")  # of `adaptive.recording`
CROWDED = FILE.with_name("crowded.npz")  # of the same, on another host
PARTS = TUNING, HELD_OUT = "tuning", "held out"
# Where a load's recordings are, and under which name.
LOADS = {
    "idle": (FILE, "idle"),
    "busy": (FILE, "busy"),
    "memory": (FILE, "memory"),
    "crowded": (CROWDED, "busy"),
    "crowded, memory": (CROWDED, "memory"),
}
NEAR, FAST = 32, 0.1  # calls before and behind one, and the share of them, that say how slow it was
BLOCK = 32  # residuals that are drawn together
STILL = 0.5  # [nats] a residual from which the call stood still


class Trace(NamedTuple):
    """A recording."""

    time: Float[np.ndarray, " calls"]  # [s]
    slow: Float[np.ndarray, " calls"]  # [nats] of all levels
    residuals: tuple[np.ndarray, ...]  # [nats] of the calls of each level, in their order
    stalls: tuple[np.ndarray, ...]  # [s] for which each stood still besides

    def slowdown(
        self, times: Float[np.ndarray, " times"], start: float
    ) -> Float[np.ndarray, " times"]:
        """How slow it is at some times [nats], if the recording begins at a moment [s] of its own.

        It begins anew when it is over.
        """
        return np.interp((times + start) % self.time[-1], self.time, self.slow)

    def scatter(
        self, samples: int, levels: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "samples levels"], Float[np.ndarray, "samples levels"]]:
        """Draw residuals [nats] and stalls [s] of calls.

        Args:
            samples: How many.
            levels: Of the model; the recording's last one stands for any beyond.
            rng: Draws the blocks.
        """
        where = np.repeat(rng.random(-(-samples // BLOCK)), BLOCK)[:samples]
        within = np.arange(samples) % BLOCK
        drawn = []
        for level in range(levels):
            known = min(level, len(self.residuals) - 1)
            place = (where * (len(self.residuals[known]) - BLOCK)).astype(int) + within
            drawn.append((self.residuals[known][place], self.stalls[known][place]))
        noise, stalls = zip(*drawn, strict=True)
        return np.stack(noise, axis=1), np.stack(stalls, axis=1)


@cache
def trace(load: str, part: str = TUNING) -> Trace:
    """Read a recording.

    Args:
        load: One of `LOADS`, on the machine.
        part: One of `PARTS`.
    """
    file, name = LOADS[load]
    with np.load(file) as found:
        idle, sizes = found[f"{part}/idle/ratio"], int(found["sizes"])
        time, ratio, kind = (found[f"{part}/{name}/{key}"] for key in ("time", "ratio", "kind"))
        usual, kinds = idle.astype(float), found[f"{part}/idle/kind"]
        table = json.loads(found["about"].tobytes())["nominal_us"]
    nominal = 1e-6 * np.array([list(row.values()) for row in table]).ravel()
    constant = np.array([np.median(usual[kinds == one]) for one in range(kinds.max() + 1)])
    time, left = time.astype(float), ratio.astype(float) - constant[kind]
    level = kind // sizes
    around = np.pad(left, NEAR, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(around, 2 * NEAR + 1)
    slow = np.quantile(windows, FAST, axis=1)
    left = left - slow
    still = left > STILL
    typical = nominal[kind] * np.exp(constant[kind] + slow)  # [s]
    stalls = np.where(still, typical * np.expm1(left), 0.0)
    left = np.where(still, 0.0, left)
    each = [level == one for one in range(level.max() + 1)]
    return Trace(
        time - time[0], slow, tuple(left[one] for one in each), tuple(stalls[one] for one in each)
    )
