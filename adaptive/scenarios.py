"""What can happen to an agent's machine, as seeded worlds for a simulation of its governor.

A world says when samples come, by when each wants its answer, and how much longer than nominal any
call would take at any time: at a level v, begun at t when the sample n was the newest,

    cost = nominal[v, batch] exp(slow(t) + noise[n, v] + cold coldness(pause before it))
           + stall[n, v],

and what stops altogether meanwhile. As that does not depend on what is decided, policies can be
compared on the very same world, and an oracle can look it up. How much may be spent does: what is
used of a quota is counted as it is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from adaptive.backlog import Rank
from adaptive.traces import HELD_OUT, LOADS, TUNING, trace

TICK = 1e-3  # [s] of the slowdown's grid
SPREAD = 0.04  # of the noise of a call [nats]
AMPLE = 0.6  # of a core: a budget that is nearly enough
CROWDING = 8.0  # times as slow, where some streams are critical
# Share of calls that stand still, and the mean of how long [s], by an exponential; as was recorded.
TAIL, TAIL_SCALE = 0.005, 1e-3
SPIKE = 1e-3  # [s]
COOLING = 5e-3  # [s] of a pause after which half of it is cold


@dataclass(frozen=True)
class Site:
    """Where an agent runs: how many streams, how fast, and on what."""

    name: str
    streams: int
    rate_hz: float  # of each
    deadline: float  # [s]
    slower: float  # than the machine whose costs are nominal
    base: float = 0.15  # of a core: what the agent takes beside the model


# A small board is slower by itself.
GATEWAY = Site("gateway", 512, 16.0, 15e-3, 1.0)
BEDSIDE = Site("bedside", 4, 125.0, 15e-3, 4.0)
SITES = GATEWAY, BEDSIDE


class Quota(NamedTuple):
    """How much CPU time all of the agent may take in each period; then it stops until the next."""

    cpu: float  # [s]
    period: float  # [s]


@dataclass(frozen=True)
class World:
    """All that will happen."""

    arrivals: Float[np.ndarray, " samples"]  # [s], ascending
    deadlines: Float[np.ndarray, " samples"]  # [s] from arrival; the same for all of a stream
    slow: Float[np.ndarray, " ticks"]  # [nats] of all levels
    noise: Float[np.ndarray, "samples levels"]  # [nats] of a call, by the newest sample
    stalls: Float[np.ndarray, "samples levels"]  # [s] for which it stands still, however long it is
    pauses: tuple[tuple[float, float], ...] = ()  # [s] the model's process does not run
    crashes: tuple[tuple[float, float], ...] = ()  # [s] its process dies, until it is there again
    slower: float = 1.0  # than nominal
    base: float = 0.0  # of a core: what the agent takes beside the model
    quota: Quota | None = None
    budgets: tuple[tuple[float, float], ...] = ()  # [s] from when on, of a core: for all it does
    steps: tuple[tuple[float, float], ...] = ()  # [s] when all is slower at once, until not
    streams: Int[np.ndarray, " samples"] | None = None  # of which each is; None: all of one
    ranks: tuple[Rank, ...] = ()  # of each stream; none: all are equal
    cold: float = 0.0  # [nats] that a long pause adds to the next call

    @property
    def length(self) -> float:
        """Until the last sample [s]."""
        return float(self.arrivals[-1])


def coldness(pause: float) -> float:
    """From 0 after no pause [s] towards 1 after a long one."""
    return pause / (pause + COOLING) if pause < 1e3 else 1.0


def quiet(site: Site, levels: int, samples: int, rng: np.random.Generator) -> World:
    """Each stream at its own pace, and calls with a little noise and a few outliers."""
    each = -(-samples // site.streams)
    phase = rng.uniform(0, 1 / site.rate_hz, site.streams)
    times = phase[:, None] + np.arange(each) / site.rate_hz
    times += rng.normal(0, 0.02 / site.rate_hz, times.shape)
    order = np.argsort(times, axis=None, kind="stable")[:samples]
    arrivals, streams = np.maximum(times.ravel()[order], 0.0), order // each
    ticks = int(arrivals[-1] / TICK) + 2
    noise = rng.normal(0, SPREAD, (samples, 1)) + rng.normal(0, SPREAD / 2, (samples, levels))
    stalls = (rng.random(samples) < TAIL) * rng.exponential(TAIL_SCALE, samples)
    stalls = np.repeat(stalls[:, None], levels, axis=1)
    deadlines = np.full(samples, site.deadline)
    slow = np.zeros(ticks)
    about = {"slower": site.slower, "base": site.base, "streams": streams}
    return World(arrivals, deadlines, slow, noise, stalls, **about)


def at(world: World, *shares: float) -> list[float]:
    """Times at shares of the world's length [s]."""
    return [share * world.length for share in shares]


def ticks(world: World) -> Float[np.ndarray, " ticks"]:
    """The times of the slowdown's grid [s]."""
    return TICK * np.arange(len(world.slow))


def during(world: World, start: float, end: float) -> Float[np.ndarray, " ticks"]:
    """1 from one share of the world's length to another, else 0."""
    begin, stop = at(world, start, end)
    now = ticks(world)
    return ((now >= begin) & (now < stop)).astype(float)


def slowed(world: World, more: Float[np.ndarray, " ticks"]) -> World:
    """The world with more slowdown."""
    return replace(world, slow=world.slow + more)


Change = Callable[[World, np.random.Generator], World]


def step(world: World, times: float, start: float, end: float) -> World:
    """So many times as slow from one share of the world's length to another."""
    begin, stop = at(world, start, end)
    stepped = replace(world, steps=(*world.steps, (begin, stop)))
    return slowed(stepped, np.log(times) * during(world, start, end))


def step_of_three(world: World, _: np.random.Generator) -> World:
    """Three times as slow for a while."""
    return step(world, 3.0, 0.3, 0.7)


def steps(world: World, rng: np.random.Generator) -> World:
    """From 1.5 to 8 times as slow, and back, six times."""
    for k in range(6):
        world = step(world, rng.uniform(1.5, 8.0), (k + 0.4) / 6, (k + 0.9) / 6)
    return world


def ramp(world: World, _: np.random.Generator) -> World:
    """Ever hotter, up to four times as slow, and cooler again."""
    share = ticks(world) / world.length
    return slowed(world, np.log(4.0) * np.clip(2 - np.abs(4 * share - 2), 0, 1))


def bursts(world: World, rng: np.random.Generator) -> World:
    """A neighbour that comes and goes at random (Gilbert & Elliott): 2.5 times, .2 of the time."""
    state, on = 0, np.zeros(len(world.slow))
    leave = rng.random(len(on))
    for k in range(len(on)):
        state ^= leave[k] < (TICK / 0.08 if state else TICK / 0.32)
        on[k] = state
    return slowed(world, np.log(2.5) * on)


def spikes(world: World, rng: np.random.Generator) -> World:
    """One call in a hundred stands still for 1 ms and more: a Pareto tail with exponent 1.5."""
    samples = len(world.arrivals)
    stalls = SPIKE * (rng.random(samples) < 0.01) * (1.0 + rng.pareto(1.5, samples))
    return replace(world, stalls=world.stalls + stalls[:, None])


def collections(world: World, _: np.random.Generator) -> World:
    """The model's process stops for 150 ms, each 1.5 s."""
    starts = np.arange(0.7, world.length, 1.5)
    return replace(world, pauses=tuple((float(s), float(s) + 0.15) for s in starts))


def quota(world: World, _: np.random.Generator) -> World:
    """A quota of half of a core: what uses it up within 100 ms stops until the next ones."""
    return replace(world, quota=Quota(50e-3, 0.1))


def halved(world: World, _: np.random.Generator) -> World:
    """A budget of the CPU, which is halved."""
    return replace(world, budgets=tuple(zip(at(world, 0.0, 0.5), (AMPLE, AMPLE / 2), strict=True)))


def cold_clock(world: World, _: np.random.Generator) -> World:
    """A clock that falls when there is little to do, and needs a while to rise."""
    swing = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * ticks(world) / (world.length / 8)))
    lag = np.exp(-np.arange(int(0.4 / TICK)) * TICK / 0.1)
    smooth = np.convolve(swing, lag / lag.sum())[: len(swing)]
    return slowed(world, np.log(1.8) * (1 - smooth))


def crowds(world: World, rng: np.random.Generator) -> World:
    """Samples that come five times as dense for a while, after a network was away."""
    arrivals = world.arrivals.copy()
    for start in rng.uniform(0, 0.95, 12) * world.length:
        there = (arrivals >= start) & (arrivals < start + 0.25)
        arrivals[there] = start + 0.2 + (arrivals[there] - start) / 5
    return replace(world, arrivals=np.sort(arrivals))


def mixed(world: World, rng: np.random.Generator) -> World:
    """Streams whose deadlines are a third, one and five times the usual one."""
    streams = np.zeros(len(world.arrivals), int) if world.streams is None else world.streams
    factor = rng.choice([1 / 3, 1.0, 5.0], streams.max() + 1, p=[0.2, 0.5, 0.3])
    factor[: len(factor) // 4 + 1] = 1 / 3  # also where there are few
    return replace(world, deadlines=world.deadlines * factor[streams])


def ranked(world: World, rng: np.random.Generator) -> World:
    """A fifth of the streams is critical, a quarter has a promise; ever slower, until too slow."""
    streams = 1 if world.streams is None else world.streams.max() + 1
    ranks = [
        Rank(critical=k % 5 == 0, firm=(1, 4) if k % 4 == 1 else (0, 1)) for k in range(streams)
    ]
    rng.shuffle(ranks)
    slower = np.log(CROWDING) * np.minimum(1.2 * ticks(world) / world.length, 1.0)
    return replace(slowed(world, slower), ranks=tuple(ranks))


def one_level(world: World, _: np.random.Generator) -> World:
    """The highest level alone becomes twice as slow: a shared slowdown is wrong."""
    later = world.arrivals > 0.4 * world.length
    noise = world.noise.copy()
    noise[later, -1] += np.log(2.0)
    return replace(world, noise=noise)


def crash(world: World, _: np.random.Generator) -> World:
    """The model's process dies twice and is there again after a second."""
    return replace(world, crashes=tuple((t, t + 1.0) for t in at(world, 0.3, 0.6)))


def crowded(world: World, rng: np.random.Generator) -> World:
    """Everything takes twice as long, with bursts and spikes: a machine in a bad hour."""
    return spikes(bursts(slowed(world, np.full(len(world.slow), np.log(2.0))), rng), rng)


def polled(world: World, _: np.random.Generator) -> World:
    """All sensors are read each 50 ms, in three parts; between them the caches grow cold."""
    each, parts = 50e-3, 3
    begun = np.floor(world.arrivals / each)
    part = np.floor(parts * (world.arrivals / each - begun))
    return replace(world, arrivals=each * begun + 1e-3 * part, cold=np.log(2.0))


SCENARIOS: dict[str, Change] = {
    "quiet": lambda world, _: world,
    "step x3": step_of_three,
    "steps x1.5 to 8": steps,
    "ramp": ramp,
    "bursts": bursts,
    "spikes": spikes,
    "pauses": collections,
    "quota": quota,
    "budget halved": halved,
    "cold clock": cold_clock,
    "crowds": crowds,
    "mixed deadlines": mixed,
    "ranks": ranked,
    "one level": one_level,
    "crash": crash,
    "bad hour": crowded,
}


def recorded(world: World, rng: np.random.Generator, load: str, part: str = TUNING) -> World:
    """As slow, and with such noise, as was recorded of a machine under a load."""
    found = trace(load, part)
    slow = found.slowdown(ticks(world), rng.uniform(0, found.time[-1]))
    samples, levels = world.noise.shape
    noise, stalls = found.scatter(samples, levels, rng)
    return replace(world, slow=slow, noise=noise, stalls=stalls)


RECORDED: dict[str, partial[World]] = {
    f"recorded, {load}": partial(recorded, load=load) for load in LOADS
}
SCENARIOS |= RECORDED | {"polled": polled}


def world(
    name: str, site: Site, levels: int, samples: int, seed: int, held_out: bool = False
) -> World:
    """A scenario at a site; the same for the same arguments, on any machine.

    Args:
        name: One of `SCENARIOS`.
        site: Where.
        levels: How many the model has.
        samples: How many come.
        seed: Of all that is drawn.
        held_out: By the recordings for final figures, where it is made of recordings.
    """
    rng, change = np.random.default_rng((seed, list(SCENARIOS).index(name))), SCENARIOS[name]
    if held_out and name in RECORDED:
        change = partial(RECORDED[name], part=HELD_OUT)
    return change(quiet(site, levels, samples, rng), rng)
