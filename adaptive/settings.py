"""What a user may set of the model and its alarms, and the levels that the model is compiled at."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from adaptive.ladder import WORTH_FULL, WORTH_MANDATORY

FEEDBACK_REACH = 4  # memories of the model; so far back feedback may reach
BLOCK, BLOCKS = 32, 4  # samples that one compiled call takes at most; calls in a row at most
PHASES = 16  # of a ring by phase; what a level remembers is so many times whole
EXPERTS = (
    "persistence",
    "seasonal",
    "profile-fast",
    "profile-slow",
    "rls-long",
    "rls-slow",
    "rls-fast",
)
OBJECTIVES = ("huber", "misses")
ENCODERS = ("delta", "attention")
ORIGINS = 32  # moments that one gradient step learns from
KINDS = (*EXPERTS, "trunk", "recall", "encoder", "corrected", "served")  # judged forecasts


def empty_block(channels: int, samples: int = BLOCK) -> Float[np.ndarray, "rows inputs"]:
    """What compiled calls take, without a sample: of each its stream, or -1, values, seen.

    Args:
        channels: Of every stream.
        samples: That will be in it, at most: there are whole blocks for them.
    """
    block = np.zeros((-(-samples // BLOCK) * BLOCK, 1 + 2 * channels), np.float32)
    block[:, 0] = -1.0
    return block


class Shape(NamedTuple):
    """What fixes the size of every array."""

    channels: int
    horizon: int  # [samples]
    memory: int  # [samples], a power of two
    window: int  # [samples]
    dim: int
    heads: int
    origins: int  # moments that one gradient step learns from
    layers: int = 1
    patch: int = 1  # [samples]
    decoder: bool = False  # a query for each step ahead
    int8: bool = False  # the encoder's weights are rounded to eight bits
    replayed: int = 0  # older moments that one gradient step learns from
    levels: int = 1  # of computation
    encoder: str = "delta"  # one of `ENCODERS`


@dataclass(frozen=True)
class Level:
    """How much is computed for an answer; one compiled program each: [[model.levels]]."""

    name: str
    memory_samples: int = 0
    """How many moments recall attends to; 0: no recall."""
    window_samples: int = 0
    """How many tokens the encoder attends to; 0: no encoder. One of delta layers has no window, and
    takes every other number alike."""
    heads: int = 0
    """Of the encoder's last layer, the most important ones, or of delta layers the first; 0: all.
    """
    units: int = 0
    """Hidden ones of the same; 0: all."""
    worth: float = 0.0
    """Quality of its answers, where that of the mandatory one is .193 and that of a full one of the
    built-in model .711; a budget is spent by it. 0 at all levels: taken from what they cost."""


# Cheapest first; every level keeps what a higher one needs. A memory of 2048 costs nearly what
# 4096 do. Half of the heads and units take 2 us of 96 off, and most of what the encoder earns.
# Worths are measured as those that they lie between (`adaptive.ladder`).
LADDER = (
    Level("trunk", worth=0.361),
    Level("recall-512", memory_samples=512, window_samples=32, worth=0.502),
    Level("full", memory_samples=4096, window_samples=128, worth=WORTH_FULL),
)


@dataclass(frozen=True)
class Model:
    """The [model] table of the configuration."""

    horizon_samples: int = 1
    """How far to forecast."""
    memory_samples: int = 4096
    """How much of the past recall attention may attend to; a power of two, at least 512."""
    encoder: str = "delta"
    """`delta`, gated delta layers, whose cost is that of one sample however far they look back; or
    `attention`, over a window, whose weights can be looked at."""
    window_samples: int = 128
    """How many samples the encoder attends to; with patches, how many tokens. Of delta layers: how
    many it looks through before an older moment, with `replay_moments`."""
    patch_samples: int = 1
    """Samples in a token of the encoder, and between two that it attends to."""
    dim: int = 32
    """Width of the encoder."""
    heads: int = 4
    """Attention heads of the encoder."""
    layers: int = 1
    """Of the encoder."""
    decoder: bool = False
    """Read the encoder's last layer with a query for each step ahead, not with one for all."""
    int8: bool = False
    """Keep the encoder's weights in what eight bits hold."""
    learn_every_samples: int = 32
    """A gradient step is due after so many samples of a stream; 0: never."""
    replay_moments: int = 0
    """A gradient step learns from so many older moments, too."""
    objective: str = "huber"
    """What the encoder learns to make small: `huber`, its squared error, cut for outliers, by
    gradients; `misses`, the share of errors larger than usual, by random search."""
    seed: int = 0
    """Of the first parameters."""
    levels: tuple[Level, ...] = ()
    """Cheapest first; none for those of `LADDER` that fit."""

    def __post_init__(self) -> None:
        memory = self.memory_samples
        if memory < 512 or memory & (memory - 1):
            raise ValueError(
                f"model.memory_samples must be a power of two and at least 512, got {memory}"
            )
        sizes = "horizon_samples", "window_samples", "patch_samples", "dim", "heads", "layers"
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learn_every_samples", "replay_moments", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be at least 0, got {getattr(self, name)}")
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"model.objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}"
            )
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"model.encoder must be one of {', '.join(ENCODERS)}, got {self.encoder!r}"
            )
        if self.objective == "misses" and self.replay_moments:
            raise ValueError("model.replay_moments must be 0 where model.objective is 'misses'")
        if self.dim % self.heads:
            raise ValueError(
                f"model.dim must be a multiple of model.heads, got {self.dim} and {self.heads}"
            )
        largest = Level("", memory, self.window_samples, self.heads, 2 * self.dim)
        for level in self.levels:
            check(level, largest)
        if len({level.name for level in self.levels}) < len(self.levels):
            raise ValueError("model.levels must have different names")
        worths = [level.worth for level in self.levels]
        if any(worths) and not all(a < b for a, b in pairwise([WORTH_MANDATORY, *worths])):
            raise ValueError(
                f"model.levels: worth must rise from level to level, above {WORTH_MANDATORY} which "
                f"is the mandatory answer's, got {worths}. Leave it out at all levels to have it "
                "taken from what they cost."
            )

    @property
    def feedback_samples(self) -> int:
        """How far back feedback may reach."""
        return FEEDBACK_REACH * self.memory_samples

    def shape(self, channels: int) -> Shape:
        """The sizes of all arrays, of streams of so many channels."""
        return Shape(
            channels,
            self.horizon_samples,
            self.memory_samples,
            self.window_samples,
            self.dim,
            self.heads,
            ORIGINS,
            self.layers,
            self.patch_samples,
            self.decoder,
            self.int8,
            self.replay_moments,
            len(self.ladder()),
            self.encoder,
        )

    def ladder(self) -> tuple[Level, ...]:
        """The levels, cheapest first, none larger than this model."""
        if self.levels:
            return self.levels
        fit = [
            replace(
                level,
                memory_samples=min(level.memory_samples, self.memory_samples),
                window_samples=min(level.window_samples, self.window_samples),
            )
            for level in LADDER
        ]
        # Of equal ones the last stays: a small model has a level "full" like any other.
        widest = self.window_samples if self.encoder == "attention" else 1
        sizes = [(level.memory_samples, min(level.window_samples, widest)) for level in fit]
        return tuple(level for i, level in enumerate(fit) if sizes[i] not in sizes[i + 1 :])


def check(level: Level, largest: Level) -> None:
    """Refuse a level that the model cannot have.

    Raises:
        ValueError: A number is out of range.
    """
    for name in ("memory_samples", "window_samples", "heads", "units"):
        got, most = getattr(level, name), getattr(largest, name)
        if not 0 <= got <= most:
            raise ValueError(
                f"model.levels: {name} of {level.name!r} must be in 0..{most}, which is the "
                f"model's, got {got}"
            )
    if 0 < level.memory_samples < 512 or level.memory_samples % PHASES:
        raise ValueError(
            f"model.levels: memory_samples of {level.name!r} must be 0, or a multiple of {PHASES} "
            f"and at least 512, got {level.memory_samples}"
        )


@dataclass(frozen=True)
class Alarms:
    """The [alarms] table of the configuration."""

    alarms_per_day: float = 1.0
    """How many alarms a day of each stream are wanted, in the long run; confirmed ones do not
    count."""
    rest_samples: int = 100
    """Repeats within so many samples of an alarm are not alarms of their own; no longer than a
    twentieth of the time that is asked for between two alarms."""

    def __post_init__(self) -> None:
        if not 0 <= self.alarms_per_day < inf:
            raise ValueError(f"alarms.alarms_per_day must be at least 0, got {self.alarms_per_day}")
        if self.rest_samples < 0:
            raise ValueError(f"alarms.rest_samples must be at least 0, got {self.rest_samples}")
