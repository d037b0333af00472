"""State and compiled functions of a bank of streams: NumPy in, NumPy out, JAX inside.

A sample is answered in up to three calls. `arrive` gives the mandatory estimate at once, without
JAX, and queues the sample for the model. `refine` takes the oldest queued samples through the
model, many in one compiled call, at the level that the governor picked; samples that were answered
in the meantime still enter the memory. `settle` turns the estimate that is to be published into
the answer, with its alarm. `learn` is the gradient step, for when there is time.
"""

# pyright: reportIncompatibleMethodOverride=false
# The index of a sample hides the method of tuples, which nobody needs.

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, isnan, nan, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from adaptive import event, learner, model, recall, runtime
from adaptive.calibration import Calibration
from adaptive.model import Level, Shape

MANDATORY = -1  # the level of an answer without the model
BLOCK = 32  # samples that one compiled call takes at most
LARGEST = 1e18  # a centred value is cut there, or its square would leave float32
SLOW = 0.002  # rate of the mandatory estimate's running deviation

LADDER = (  # cheapest first; every level keeps what a higher one needs
    Level("trunk", memory=0, window=0, heads=0),
    Level("recall-512", memory=512, window=0, heads=0),
    Level("recall-2048", memory=2048, window=32, heads=2),
    Level("full", memory=4096, window=128, heads=4),
)


@dataclass(frozen=True)
class Model:
    """The [model] table of the configuration."""

    horizon_samples: int = 1
    """How far to forecast."""
    memory_samples: int = 4096
    """How much of the past recall attention may attend to; a power of two, at least 512."""
    window_samples: int = 128
    """How many samples the encoder attends to."""
    dim: int = 32
    """Width of the encoder."""
    heads: int = 4
    """Attention heads of the encoder."""
    learn_every_samples: int = 32
    """A gradient step is due after so many samples of a stream; 0: never."""
    seed: int = 0
    """Of the first parameters."""

    def __post_init__(self) -> None:
        memory = self.memory_samples
        if memory < 512 or memory & (memory - 1):
            raise ValueError(
                f"model.memory_samples must be a power of two and at least 512, got {memory}"
            )
        for name in ("horizon_samples", "window_samples", "dim", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learn_every_samples", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be at least 0, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(
                f"model.dim must be a multiple of model.heads, got {self.dim} and {self.heads}"
            )

    def ladder(self) -> tuple[Level, ...]:
        """The levels, cheapest first, none larger than this model."""
        fit = [
            level._replace(
                memory=min(level.memory, self.memory_samples),
                window=min(level.window, self.window_samples),
                heads=min(level.heads, self.heads),
            )
            for level in LADDER
        ]
        # Of equal ones the last stays: a small model has a level "full" like any other.
        return tuple(
            level for i, level in enumerate(fit, 1) if level[1:] not in [f[1:] for f in fit[i:]]
        )


@dataclass(frozen=True)
class Alarms:
    """The [alarms] table of the configuration."""

    alarms_per_day: float = 1.0
    """How many alarms a day of each stream are wanted, in the long run."""
    rest_samples: int = 100
    """Repeats within so many samples of an alarm are not alarms of their own."""

    def __post_init__(self) -> None:
        if not 0 <= self.alarms_per_day < inf:
            raise ValueError(f"alarms.alarms_per_day must be at least 0, got {self.alarms_per_day}")
        if self.rest_samples < 0:
            raise ValueError(f"alarms.rest_samples must be at least 0, got {self.rest_samples}")


class Explanation(NamedTuple):
    """What an answer attended to."""

    lag: Int[np.ndarray, " nearest"]  # [samples] ago; 0 where there are fewer
    weight: Float[np.ndarray, " nearest"]  # attention on these moments
    channel: Float[np.ndarray, " channels"]  # share in the distance to them


class Estimate(NamedTuple):
    """What the model, or the mandatory score, says of a sample before calibration."""

    stream: int
    index: int  # number of the sample in its stream, as the controller counts
    level: int  # index in the ladder, or `MANDATORY`
    relative: float  # surprise, 1 is usual
    p_value: float
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
    event: float  # probability that an operator would confirm an event; NaN without labels


class Queued(NamedTuple):
    """A sample that the model has yet to see."""

    stream: int
    index: int  # number of the sample in its stream, as the controller counts
    values: list[float]  # centred; 0 where missing
    seen: list[bool]  # whether measured
    anchor: list[float]  # what was taken off; 0 where nothing was ever seen


class Track:
    """What is kept of a stream outside of JAX. Plain lists: they beat NumPy for a few channels."""

    def __init__(self, channels: int, horizon: int, memory: int, alarms: Alarms):
        self.count = 0
        self.anchor = [nan] * channels  # first values: centring keeps float32 exact enough
        self.last = [nan] * channels
        self.deviation = [0.0] * channels  # running mean square of the differences
        self.calibration = Calibration(alarms.alarms_per_day, alarms.rest_samples)
        self.head = event.init(memory, 4)
        self.growth = np.arange(1, horizon + 1, dtype=np.float32)[:, None]

    def observe(self, values: list[float], measured: list[bool]) -> float:
        """Take in a sample; return its difference to the last one, in usual ones.

        The largest of the channels counts; 0 while none is known.
        """
        surprise, rate = 0.0, max(1.0 / (self.count + 1), SLOW)
        for c, x in enumerate(values):
            if not isfinite(x):
                continue
            if isnan(self.anchor[c]):
                self.anchor[c] = self.last[c] = x
            if measured[c]:
                off, usual = abs(x - self.last[c]), self.deviation[c] ** 0.5
                if usual > 0:
                    surprise = max(surprise, off / usual)
                    # An absurd one counts as ten usual ones, or it would hide what follows.
                    off = min(off, 10 * usual)
                self.deviation[c] += rate * (off * off - self.deviation[c])
            self.last[c] = x
        self.count += 1
        return min(surprise, 1e6)


class Controller:
    """A bank of streams of one shape."""

    def __init__(
        self,
        streams: int,
        channels: int,
        settings: Model | None = None,
        alarms: Alarms | None = None,
    ):
        """Make a bank that has seen nothing.

        Args:
            streams: How many streams.
            channels: How many channels each has.
            settings: Of the model.
            alarms: How many are wanted.
        """
        runtime.prepare()
        self.settings, self.alarms = settings or Model(), alarms or Alarms()
        s = self.settings
        self.streams, self.channels, self.horizon = streams, channels, s.horizon_samples
        self.shape = Shape(
            channels, s.horizon_samples, s.memory_samples, s.window_samples, s.dim, s.heads, 8
        )
        self.levels = s.ladder()
        self.params = model.init_params(np.random.default_rng(s.seed), self.shape)
        self.momenta, self.bank = jax.jit(start, static_argnums=(1, 2))(
            self.params, self.shape, streams
        )
        self.tracks = [
            Track(channels, s.horizon_samples, s.memory_samples, self.alarms)
            for _ in range(streams)
        ]
        self.queue: deque[Queued] = deque()
        self.due = [0] * streams  # samples since the last gradient step
        self._output = {
            "forecast": (self.horizon, channels),
            "spread": (self.horizon, channels),
            "strange": (len(recall.SCALES),),
            "error": (),
            "lag": (recall.NEAREST,),
            "weight": (recall.NEAREST,),
            "channel": (channels,),
            "loss": (len(model.KINDS),),
        }
        self._run: dict[int, Callable] = {}
        self._learn: Callable | None = None

    # --- start ----------------------------------------------------------------------------------

    def warm_up(self, levels: Sequence[int] | None = None, learn: bool = True) -> Iterator[str]:
        """Compile all that will ever run, two programs at a time; nothing compiles afterwards.

        Args:
            levels: Which levels; all when None.
            learn: Whether gradient steps will be taken.

        Yields:
            The name of each program when it is ready.
        """
        levels = range(len(self.levels)) if levels is None else levels
        run_args = (self.params, self.bank, self._no_block(), np.int32(1))
        jobs: dict[str, Callable[[], Callable]] = {}
        for i in levels:
            jitted = jax.jit(partial(run, level=self.levels[i]), donate_argnums=1)
            jobs[self.levels[i].name] = jitted.lower(*run_args).compile
        if learn and self.settings.learn_every_samples:
            jitted = jax.jit(partial(learner.step, shape=self.shape), donate_argnums=2)
            jobs["learn"] = jitted.lower(self.params, self.momenta, self.bank, np.int32(0)).compile
        with ThreadPoolExecutor(2) as pool:
            compiled = {name: pool.submit(job) for name, job in jobs.items()}
            for name, future in compiled.items():
                program = future.result()
                if name == "learn":
                    self._learn = program
                else:
                    self._run[[level.name for level in self.levels].index(name)] = program
                yield name

    def take_programs(self, other: "Controller") -> None:
        """Use what another controller of the same shape has compiled."""
        if (other.shape, other.streams, other.levels) != (self.shape, self.streams, self.levels):
            raise ValueError(f"programs are of {other.shape}, not of {self.shape}")
        self._run, self._learn = other._run, other._learn

    def costs(self, repeats: int = 20, pause: float = 0.0) -> list[dict[int, float]]:
        """Measure what each level costs, on copies, so that nothing is learned from it.

        Args:
            repeats: Calls of each level and size.
            pause: Between two calls, as in deployment [s].

        Returns:
            For each level the median cost [s] of a call with so many samples.
        """
        block, costs = self._no_block(), []
        bank = jax.tree.map(jnp.copy, self.bank)
        for i in range(len(self.levels)):
            cost = {}
            for size in (1, 8, BLOCK):
                laps = []
                for _ in range(repeats if size < BLOCK else 3):
                    time.sleep(pause)
                    start = time.perf_counter()
                    bank, out = self._run[i](self.params, bank, block, np.int32(size))
                    jax.block_until_ready(out)
                    laps.append(time.perf_counter() - start)
                cost[size] = float(np.median(laps))
            costs.append(cost)
        return costs

    def learn_cost(self, repeats: int = 5) -> float:
        """Measure what a gradient step costs [s], on copies; 0 if none are taken."""
        if self._learn is None:
            return 0.0
        bank, laps = jax.tree.map(jnp.copy, self.bank), []
        for _ in range(repeats):
            start = time.perf_counter()
            _, _, bank, report = self._learn(self.params, self.momenta, bank, np.int32(0))
            jax.block_until_ready(report)
            laps.append(time.perf_counter() - start)
        return float(np.median(laps))

    def _no_block(self) -> Float[np.ndarray, "block inputs"]:
        return np.zeros((BLOCK, 2 * self.channels + 1), np.float32)

    # --- the path of a sample -------------------------------------------------------------------

    def arrive(
        self,
        stream: int,
        values: Float[np.ndarray, " channels"],
        filled: Bool[np.ndarray, " channels"] | None = None,
    ) -> Estimate:
        """Queue a sample for the model and give the mandatory estimate: persistence and its error.

        Args:
            stream: Which stream.
            values: [channels], in the stream's units; NaN is a missing value.
            filled: Which values were filled in and count as not measured.
        """
        track = self.tracks[stream]
        plain = values.tolist()
        measured = [isfinite(x) for x in plain]
        if filled is not None:
            measured = [m and not f for m, f in zip(measured, filled.tolist(), strict=True)]
        surprise = track.observe(plain, measured)
        relative, p_value = track.calibration.rank(MANDATORY, (surprise,))
        # As known now: a later sample of the same call may be the first of its channel.
        anchor = [0.0 if isnan(a) else a for a in track.anchor]
        centred = [
            min(max(x - a, -LARGEST), LARGEST) if isfinite(x) else 0.0
            for x, a in zip(plain, anchor, strict=True)
        ]
        index = track.count - 1
        self.queue.append(Queued(stream, index, centred, measured, anchor))
        ahead = np.array([track.last] * self.horizon, np.float32)
        spread = np.sqrt(np.array(track.deviation, np.float32) * track.growth)
        return Estimate(stream, index, MANDATORY, relative, p_value, ahead, spread, None, None)

    def refine(self, level: int, batch: int = BLOCK) -> list[Estimate]:
        """Take the oldest queued samples through the model, in one call.

        Args:
            level: Index in the ladder.
            batch: How many at most.

        Returns:
            An estimate for each, in the order of their arrival.
        """
        taken = [self.queue.popleft() for _ in range(min(batch, BLOCK, len(self.queue)))]
        block = np.zeros((BLOCK, 2 * self.channels + 1), np.float32)
        for k, sample in enumerate(taken):
            block[k] = (sample.stream, *sample.values, *sample.seen)
        self.bank, packed = self._run[level](self.params, self.bank, block, np.int32(len(taken)))
        out = self._unpack(np.asarray(packed)[: len(taken)])
        return [self._estimate(level, sample, out, k) for k, sample in enumerate(taken)]

    def skip(self) -> None:
        """Leave the oldest queued sample out of the model's memory."""
        self.queue.popleft()

    def _unpack(self, packed: Float[np.ndarray, "samples outputs"]) -> dict[str, np.ndarray]:
        """The fields of `model.Output`, each with a row for every sample."""
        parts, start = {}, 0
        for name, shape in self._output.items():
            stop = start + prod(shape)
            parts[name] = packed[:, start:stop].reshape(-1, *shape)
            start = stop
        return parts | {"lag": parts["lag"].astype(np.int32)}

    def _estimate(self, level: int, sample: Queued, out: dict[str, np.ndarray], k: int) -> Estimate:
        track = self.tracks[sample.stream]
        self.due[sample.stream] += 1
        if not any(sample.seen):
            relative, p_value = 1.0, 1.0  # nothing was measured: nothing is strange
        else:
            # Recall is the better judge by far; the trunk's error stands in where it is off.
            strange, error = out["strange"][k], out["error"][k]
            parts = strange.tolist() if self.levels[level].memory else [float(error)]
            relative, p_value = track.calibration.rank(level, parts)
        return Estimate(
            sample.stream,
            sample.index,
            level,
            relative,
            p_value,
            (out["forecast"][k] + sample.anchor).astype(np.float32),
            out["spread"][k],
            Explanation(out["lag"][k], out["weight"][k], out["channel"][k]),
            out["loss"][k],
        )

    def settle(
        self, estimate: Estimate, time: float, values: Float[np.ndarray, " channels"]
    ) -> Answer:
        """Decide about the alarm; once for each sample, in the order of the stream."""
        track = self.tracks[estimate.stream]
        verdict = track.calibration.judge(
            time, values.tolist(), estimate.relative, estimate.p_value
        )
        why = estimate.explanation
        lag, weight = (why.lag, why.weight) if why else (NO_LAG, NO_WEIGHT)
        seen = event.features(
            track.head, estimate.index, estimate.relative, estimate.p_value, lag, weight
        )
        probability = event.predict(track.head, estimate.index, seen)
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
        track = self.tracks[stream]
        indices = indices[(indices >= track.count - len(track.head.said)) & (indices < track.count)]
        if not len(indices):
            return False
        track.head = event.learn(track.head, indices, label)
        return True

    def learning_due(self) -> int | None:
        """The stream that has waited longest for a gradient step; None if none is due."""
        every = self.settings.learn_every_samples
        stream = int(np.argmax(self.due))
        return stream if every and self._learn and self.due[stream] >= every else None

    def learn(self, stream: int) -> bool:
        """Take one gradient step on the matured feedback of a stream.

        Returns:
            Whether it landed; a step that is not finite changes nothing.
        """
        if self._learn is None:
            raise RuntimeError("warm_up() was not called with learn=True")
        self.due[stream] = 0
        self.params, self.momenta, self.bank, report = self._learn(
            self.params, self.momenta, self.bank, np.int32(stream)
        )
        return bool(np.asarray(report.landed))

    # --- what outlives a restart ----------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict]:
        """All state, as named arrays and plain numbers."""
        arrays = {
            jax.tree_util.keystr(path): np.array(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self._trees())
        }
        plain = []
        for i, track in enumerate(self.tracks):
            for name in ("anchor", "last", "deviation"):
                arrays[f"track.{i}.{name}"] = np.array(getattr(track, name))
            for name in ("weights", "covariance", "features", "said"):
                arrays[f"track.{i}.{name}"] = np.array(getattr(track.head, name))
            plain.append(
                {
                    "count": track.count,
                    "labels": track.head.labels,
                    "calibration": track.calibration.snapshot(),
                }
            )
        return arrays, {"tracks": plain, "due": self.due}

    def restore(self, arrays: dict[str, np.ndarray], header: dict) -> None:
        """Take up where `snapshot` was made; samples that were queued then are not in it."""
        paths, form = jax.tree_util.tree_flatten_with_path(self._trees())
        # Copied without a compiled copy; shared memory could not be changed in place.
        leaves = [
            jax.device_put(arrays[jax.tree_util.keystr(path)], may_alias=False) for path, _ in paths
        ]
        self.params, self.momenta, self.bank = jax.tree.unflatten(form, leaves)
        for i, (track, saved) in enumerate(zip(self.tracks, header["tracks"], strict=True)):
            track.count = saved["count"]
            for name in ("anchor", "last", "deviation"):
                setattr(track, name, arrays[f"track.{i}.{name}"].tolist())
            rings = ("weights", "covariance", "features", "said")
            head = {name: arrays[f"track.{i}.{name}"].copy() for name in rings}
            track.head = event.State(**head, labels=saved["labels"])
            track.calibration.restore(saved["calibration"])
        self.due = list(header["due"])

    def _trees(self) -> tuple:
        return self.params, self.momenta, self.bank


NO_LAG, NO_WEIGHT = np.zeros(1, np.int32), np.zeros(1, np.float32)


def start(params, shape, streams):
    """Momenta and bank before the first sample."""
    return learner.optimiser().init(params), model.bank(params, shape, streams)


def run(params, bank, block, count, *, level):
    """Take up to `BLOCK` samples of any streams of a bank through the model, in order.

    Inputs and outputs are packed into one array each: every array of a call costs microseconds.

    Args:
        params: Shared parameters.
        bank: All streams; donated, and changed in place.
        block: [BLOCK, 1 + 2 channels] float32: the stream, the centred values, and 1 where they
            were measured.
        count: How many samples there are.
        level: Static.

    Returns:
        The bank, and [BLOCK, outputs], the fields of `model.Output` side by side.
    """
    channels = (block.shape[1] - 1) // 2

    def step(bank, row):
        stream = row[0].astype(jnp.int32)
        x, seen = row[1 : 1 + channels], row[1 + channels :]
        state, out = model.step(params, model.of_stream(bank, stream), x, seen, level)
        packed = jnp.concatenate([jnp.ravel(a).astype(jnp.float32) for a in out])
        return model.with_stream(bank, stream, state), packed

    def one(k, carry):
        bank, outputs = carry
        bank, packed = step(bank, block[k])
        return bank, outputs.at[k].set(packed)

    width = jax.eval_shape(step, bank, block[0])[1].shape[0]
    return lax.fori_loop(0, count, one, (bank, jnp.zeros((BLOCK, width), jnp.float32)))
