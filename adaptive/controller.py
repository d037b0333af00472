"""A bank of streams: samples in, answers out, with the model's engine between.

A sample is answered in up to three calls. `arrive` gets it ready for the model; from then on
`mandatory` gives an estimate of it without JAX. `refine` takes such samples through the model, many
in one compiled call, at the level that the governor picked, those of a stream in their order;
samples that were answered in the meantime still enter the memory. `settle` turns the estimate that
is to be published into the answer, with its alarm. `learn` is the gradient step, for when there is
time.
"""

# pyright: reportIncompatibleMethodOverride=false
# The index of a sample hides the method of tuples, which nobody needs.

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan, prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from adaptive import event, mandatory
from adaptive.calibration import Calibration
from adaptive.dismissal import Dismissals
from adaptive.mandatory import Mandatory
from adaptive.settings import Alarms, Model, empty_block
from adaptive.surprise import Rank, Surprise

if TYPE_CHECKING:
    from adaptive.engine import Engine
    from adaptive.isolation import Remote

MANDATORY = mandatory.LEVEL
KEPT = "mandatory", "head", "dismissals"  # of a member, as arrays
# Jumps that others are compared with: at first all, then one in so many. To compare and count one
# takes longer than all else of an arrival, and few answers are mandatory.
FEW, COUNTED = 128, 4
LARGEST = 1e18  # a centred value is cut there, or its square would leave float32
OVERDUE = 1.05  # times as many samples as there are between gradient steps: now it presses
CAUSES = (  # of an answer being strange, in the order of its parts
    *(f"unlike any {samples} samples remembered" for samples in (3, 12, 48, 12, 48, 192)),
    "seldom seen",
    "far from its usual level",
)
WITHOUT_RECALL = ("unlike what was foreseen", CAUSES[-1])
JUMP = "a jump"


class Explanation(NamedTuple):
    """What an answer attended to."""

    lag: Int[np.ndarray, " shown"]  # [samples] ago; 0 where there are fewer
    weight: Float[np.ndarray, " shown"]  # attention on these moments
    channel: Float[np.ndarray, " channels"]  # share in the distance to the nearest moments
    expert: Float[np.ndarray, " experts"]  # weight of each of `settings.EXPERTS`
    gain: Float[np.ndarray, " corrections"]  # how much of recall's and the encoder's is served
    encoder: str  # which kind of `settings.ENCODERS` took part; "" where it is off


class Estimate(NamedTuple):
    """What the model, or the mandatory score, says of a sample before calibration."""

    stream: int
    index: int  # number of the sample in its stream, as the controller counts
    level: int  # index in the ladder, or `MANDATORY`
    surprise: Surprise
    cause: str  # what is strangest about it, in words
    forecast: Float[np.ndarray, "horizon channels"]  # of the next samples, in their units
    spread: Float[np.ndarray, "horizon channels"]  # usual error of such a forecast
    explanation: Explanation | None
    loss: Float[np.ndarray, " kinds"] | None  # discounted squared errors [variances]


class Answer(NamedTuple):
    """The answer to a sample."""

    estimate: Estimate
    score: float  # in [0, 1], higher is stranger
    p_value: float
    strength: float  # of an alarm, in [0, 1); 0 in repeats of a stronger one
    alarm: bool
    dismissed: bool  # it would have been an alarm, but an operator has dismissed the like
    event: float  # probability that an operator would confirm an event; NaN without labels


class Queued(NamedTuple):
    """A sample that the model has yet to see."""

    stream: int
    index: int  # number of the sample in its stream, as the controller counts
    values: list[float]  # centred; 0 where missing
    seen: list[bool]  # whether measured
    anchor: list[float]  # what was taken off; 0 where nothing was ever seen
    jump: float  # from the last sample, in usual ones
    surprise: Surprise | None  # by it; None where it was not compared yet
    last: list[float]  # values that are known; NaN before the first
    deviation: list[float]  # running mean square of their differences


class Call(NamedTuple):
    """Samples on their way through a compiled program."""

    level: int  # index in the ladder
    samples: Sequence[Queued]
    block: Float[np.ndarray, "rows inputs"]  # what `engine.run` takes


@dataclass
class Member:
    """What is kept of one stream of the bank outside of JAX."""

    mandatory: Mandatory
    rank: Rank  # of the mandatory estimate's surprise
    calibration: Calibration
    head: event.Head
    dismissals: Dismissals
    ahead: list[float]  # what was foreseen of the next sample


class Controller:
    """A bank of streams of one shape."""

    def __init__(
        self,
        streams: int,
        channels: int,
        settings: Model | None = None,
        alarms: Alarms | Sequence[Alarms] | None = None,
        engine: "Engine | Remote | None" = None,
    ):
        """Make a bank that has seen nothing.

        Args:
            streams: How many streams.
            channels: How many channels each has.
            settings: Of the model.
            alarms: How many are wanted of each stream, or of all.
            engine: The model, of the same streams, channels and settings; made here if None.
        """
        self.settings = settings or Model()
        wanted = alarms or Alarms()
        wanted = [wanted] * streams if isinstance(wanted, Alarms) else wanted
        s = self.settings
        self.streams, self.channels, self.horizon = streams, channels, s.horizon_samples
        self.levels = s.ladder()
        if engine is None:
            from adaptive.engine import Engine as Inside  # an agent with a far one needs no JAX

            engine = Inside(streams, channels, s)
        self.engine = engine
        self.members = [
            Member(
                Mandatory(channels),
                Rank(),
                Calibration(one.alarms_per_day, one.rest_samples),
                event.Head(s.feedback_samples, channels),
                Dismissals(s.feedback_samples, channels),
                [nan] * channels,
            )
            for one in wanted
        ]
        self.due = [0] * streams  # samples since the last gradient step
        self._patience = int(OVERDUE * s.learn_every_samples) + 1
        self._overdue: deque[int] = deque()  # streams with so many, as they came
        self.unsound: set[int] = set()  # streams whose newest estimate was of no numbers
        self._growth = np.arange(1, self.horizon + 1, dtype=np.float32)[:, None]

    @cached_property
    def _places(self) -> list[tuple[str, slice, tuple[int, ...]]]:
        """Where each field of the model's output lies; known once the engine is made."""
        places, start = [], 0
        for name, shape in self.engine.outputs().items():
            places.append((name, slice(start, start + prod(shape)), (-1, *shape)))
            start += prod(shape)
        return places

    # --- the path of a sample -------------------------------------------------------------------

    def arrive(
        self,
        stream: int,
        values: Float[np.ndarray, " channels"],
        filled: Bool[np.ndarray, " channels"] | None = None,
    ) -> Queued:
        """Get a sample ready for the model.

        Args:
            stream: Which stream.
            values: [channels], in the stream's units; NaN is a missing value.
            filled: Which values were filled in and count as not measured.

        Returns:
            What `mandatory` makes an estimate of, and `refine` a better one.
        """
        member = self.members[stream]
        known, plain = member.mandatory, values.tolist()
        measured = [isfinite(x) for x in plain]
        if filled is not None:
            measured = [m and not f for m, f in zip(measured, filled.tolist(), strict=True)]
        jump, index = known.observe(plain, measured), known.count - 1
        counts = index < FEW or index % COUNTED == 0
        surprise = member.rank.rank(jump) if counts else None
        # As known now: a later sample of the same call may be the first of its channel.
        anchor = known.anchor
        centred = [
            min(max(x - a, -LARGEST), LARGEST) if isfinite(x) else 0.0
            for x, a in zip(plain, anchor, strict=True)
        ]
        now = known.last[:], known.deviation[:]
        return Queued(stream, index, centred, measured, anchor, jump, surprise, *now)

    def mandatory(self, queued: Queued) -> Estimate:
        """Give the estimate without the model: persistence, whose error grows as a random walk's.

        Args:
            queued: What `arrive` returned.
        """
        ahead = np.array([queued.last] * self.horizon, np.float32)
        spread = np.sqrt(np.array(queued.deviation, np.float32) * self._growth)
        surprise = queued.surprise or self.members[queued.stream].rank.compare(queued.jump)
        about = surprise, JUMP, ahead, spread, None, None
        return Estimate(queued.stream, queued.index, MANDATORY, *about)

    def refine(self, level: int, samples: Sequence[Queued]) -> list[Estimate]:
        """Take samples through the model: `take`, `engine.run`, `finish`.

        Args:
            level: Index in the ladder.
            samples: Those of a stream in the order of their arrival.

        Returns:
            An estimate for each.
        """
        if self.unsound:
            self.engine.forget(sorted(self.unsound))
            self.unsound.clear()
        call = self.take(level, samples)
        return self.finish(call, self.engine.run(call.level, call.block))

    def take(self, level: int, samples: Sequence[Queued]) -> Call:
        """Make of samples what `engine.run` takes at once."""
        block = empty_block(self.channels, max(len(samples), 1))
        if samples:
            block[: len(samples)] = [(one.stream, *one.values, *one.seen) for one in samples]
        return Call(level, samples, block)

    def finish(self, call: Call, packed: Float[np.ndarray, "samples outputs"]) -> list[Estimate]:
        """Make an estimate of each row that the program gave.

        Where it gave something that is no number, that is the mandatory one, and the stream is
        `unsound`: what the model keeps of it would give no numbers for ever (`Engine.forget`).
        """
        sound = np.all(np.isfinite(packed), axis=1)
        if not np.all(sound):
            packed = np.where(sound[:, None], packed, 0.0)
        out = {name: packed[:, place].reshape(shape) for name, place, shape in self._places}
        anchors = np.array([one.anchor for one in call.samples])[:, None]
        out["forecast"] = (out["forecast"] + anchors).astype(np.float32)
        out["lag"] = out["lag"].astype(np.int32)
        level = self.levels[call.level]
        causes = CAUSES if level.memory_samples else WITHOUT_RECALL
        encoder = self.settings.encoder if level.window_samples else ""
        estimates, compared = [], out["surprise"].tolist()
        about = (out[name] for name in ("forecast", "spread", "loss", *Explanation._fields[:-1]))
        for one, (*rank, which), forecast, spread, loss, *why in zip(
            call.samples, compared, *about, strict=True
        ):
            self.due[one.stream] += 1
            if self.due[one.stream] == self._patience:
                self._overdue.append(one.stream)
            part = int(which)
            surprise, cause = Surprise._make((*rank, part)), causes[part] if part >= 0 else ""
            said = surprise, cause, forecast, spread, Explanation._make((*why, encoder)), loss
            estimates.append(Estimate(one.stream, one.index, call.level, *said))
        for n in np.flatnonzero(~sound).tolist():
            estimates[n] = self.mandatory(call.samples[n])
            self.unsound.add(call.samples[n].stream)
        return estimates

    def settle(
        self, estimate: Estimate, time: float, values: Float[np.ndarray, " channels"]
    ) -> Answer:
        """Decide about the alarm; once for each sample, in the order of the stream."""
        member, plain = self.members[estimate.stream], values.tolist()
        left = [x - ahead for x, ahead in zip(plain, member.ahead, strict=True)]
        member.dismissals.observe(estimate.index, left)
        member.ahead = estimate.forecast[0].tolist()
        verdict = member.calibration.judge(
            time, plain, estimate.level, estimate.surprise, member.dismissals.known
        )
        if member.calibration.counted:
            member.calibration.confirm(member.dismissals.count_alarm())
        centred = [x - anchor for x, anchor in zip(plain, member.mandatory.anchor, strict=True)]
        probability = member.head.observe(estimate.index, centred, estimate.surprise.above)
        return Answer(estimate, *verdict, probability)

    # --- learning -------------------------------------------------------------------------------

    def label(self, stream: int, indices: Int[np.ndarray, " samples"], label: int) -> bool:
        """Learn what someone said of some samples.

        Args:
            stream: Which stream.
            indices: Numbers of the samples (`Estimate.index`).
            label: 1: an event; 0: looked at, nothing.

        Returns:
            Whether any of the samples is still remembered.
        """
        member = self.members[stream]
        newest = member.mandatory.count
        indices = indices[(indices >= newest - self.settings.feedback_samples) & (indices < newest)]
        if not len(indices):
            return False
        member.head.learn(indices, label)
        member.calibration.confirm(member.dismissals.learn(indices, label))
        return True

    def learning_due(self, overdue: bool = False) -> int | None:
        """The stream that has waited longest for a gradient step; None if none is due.

        Args:
            overdue: Only one that has waited for some time.
        """
        every = self.settings.learn_every_samples
        if not every or overdue and not self._overdue:
            return None
        stream = self._overdue[0] if self._overdue else int(np.argmax(self.due))
        return stream if self.due[stream] >= every else None

    def step_begins(self, stream: int) -> None:
        """Take note that a stream's gradient step begins."""
        self.due[stream] = 0
        if stream in self._overdue:
            self._overdue.remove(stream)

    def learn(self, stream: int) -> bool:
        """Take one gradient step on the matured feedback of a stream.

        Returns:
            Whether it landed: it was finite, and the encoder did not go back to its anchor.
        """
        self.step_begins(stream)
        return self.engine.learn(stream)

    # --- what outlives a restart ----------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict]:
        """All state, as named arrays and plain numbers."""
        arrays, plain = self.engine.arrays(), []
        for stream in range(self.streams):
            own, said = self.kept(stream)
            arrays |= own
            plain.append(said)
        return arrays, {"members": plain, "due": list(self.due)}

    def kept(self, stream: int) -> tuple[dict[str, np.ndarray], dict]:
        """What there is of one stream outside of the engine, as copies."""
        member, arrays = self.members[stream], {}
        for kind in KEPT:
            for name, array in getattr(member, kind).snapshot().items():
                arrays[f"member.{stream}.{kind}.{name}"] = np.array(array)
        arrays[f"member.{stream}.ahead"] = np.array(member.ahead)
        return arrays, {
            "count": member.mandatory.count,
            "rank": member.rank.snapshot(),
            "calibration": member.calibration.snapshot(),
        }

    def restore(self, arrays: dict[str, np.ndarray], header: dict) -> None:
        """Take up where `snapshot` was made; samples that were queued then are not in it."""
        self.engine.load(engine_arrays(arrays))
        for i, (member, saved) in enumerate(zip(self.members, header["members"], strict=True)):

            def of(kind: str, start: str = f"member.{i}.") -> dict[str, np.ndarray]:
                start = f"{start}{kind}."
                return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}

            member.mandatory.restore(of("mandatory"), saved["count"])
            member.head.restore(of("head"))
            member.dismissals.restore(of("dismissals"))
            member.ahead = arrays[f"member.{i}.ahead"].tolist()
            member.rank.restore(saved["rank"])
            member.calibration.restore(saved["calibration"])
        self.due = list(header["due"])
        self._overdue = deque(n for n, due in enumerate(self.due) if due >= self._patience)


def engine_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a snapshot is the engine's."""
    return {name: array for name, array in arrays.items() if not name.startswith("member.")}
