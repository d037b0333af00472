"""What the page shows, as plain numbers: of a stream, a bank with its governor, the whole agent.

Nothing here waits or remembers; times are of the agent's clock. What is not finite becomes null
where it is written as JSON.
"""

from collections.abc import Sequence
from math import expm1, inf
from typing import Any

from adaptive.bank import Bank, Track
from adaptive.budget import UNITS
from adaptive.controller import MANDATORY
from adaptive.health import Health
from adaptive.loop import Loop
from adaptive.sinks import Result, attention
from adaptive.telemetry import Counters, Quantiles

ALARMS = 12  # of the chosen stream, newest first
ATTENDED = 5  # past moments, and channels, that are named for an alarm
LITTLE = 1e-3  # attention on a moment that is not named
CHANNELS = 8  # of the chosen stream, at most
BINS = 3  # of a histogram of `Quantiles`, that are one here


def row(track: Track, now: float) -> dict[str, Any]:
    """One stream in a line."""
    p50, p99 = track.latency.quantiles((0.5, 0.99))
    counters = track.counters
    return {
        "name": track.stream.name,
        "rate_hz": track.rate.at(now),
        "level": track.level_name,
        "p50_ms": 1e3 * p50,
        "p99_ms": 1e3 * p99,
        "in_time": counters.in_time,
        "missed": counters.missed,
        "alarms": counters.alarms,
        "score": track.score,
    }


def about(track: Track) -> dict[str, Any]:
    """What there is to know of the stream that somebody looks at, besides its line."""
    return {
        "channels": list(track.stream.channels[:CHANNELS]),
        "units": list(track.stream.units[:CHANNELS]),
        "channels_in_all": len(track.stream.channels),
        "deadline_ms": 1e3 * track.deadline,
        "error_ratio": track.error_ratio,
        "critical": track.line.rank.critical,
        "firm": list(track.line.rank.firm),  # m of k
        "broken": track.line.broken,  # answers that broke it
        "dismissed": track.counters.dismissed,
        "feedback": track.counters.feedback,
    }


def alarms(track: Track) -> list[dict[str, Any]]:
    """The last alarms of a stream, newest first."""
    return [alarm(result) for result in list(track.alarms)[: -ALARMS - 1 : -1]]


def labels(track: Track) -> list[int | None]:
    """What was said last of each of these, if anything."""
    newest = list(track.alarms)[: -ALARMS - 1 : -1]
    return [track.said.get(result.answer.estimate.index) for result in newest]


def alarm(result: Result) -> dict[str, Any]:
    """An alarm, and what it attended to most."""
    shown = {
        "time": result.sample.time,  # as it came: feedback is found by it
        "at_s": result.arrival,
        "score": result.answer.score,
        "level": result.level,
        "reason": result.reason,
        "moments": [],
        "channels": [],
    }
    if seen := attention(result):
        moments = zip(seen["samples_ago"], seen["weight"], strict=True)
        some = [(ago, weight) for ago, weight in moments if weight > LITTLE]
        shown["moments"] = sorted(some, key=lambda moment: -moment[1])[:ATTENDED]
        parts = sorted(seen["channel"].items(), key=lambda part: -part[1])
        shown["channels"] = parts[:ATTENDED]
    return shown


def histogram(quantiles: Quantiles) -> dict[str, Any]:
    """What was counted, in wider bins and without the empty ones at both ends.

    Returns:
        `counts`; `low`, where the first begins; `ratio`, of the ends of each. What lies below or
        above all bins is in the first or the last.
    """
    bins, width = quantiles.bins, quantiles.ratio**BINS
    last = len(bins) - 1
    counts = [sum(bins[n : min(n + BINS, last)]) for n in range(1, last, BINS)]
    counts[0] += bins[0]
    counts[-1] += bins[last]
    some = [n for n, count in enumerate(counts) if count] or [0]
    low = quantiles.low * width ** some[0]
    return {"low": low, "ratio": width, "counts": counts[some[0] : some[-1] + 1]}


def governed(bank: Bank, sums: Counters, at: float) -> dict[str, Any]:
    """A bank's governor.

    Args:
        bank: The bank.
        sums: What its streams have counted.
        at: When they were added up [s].
    """
    levels, calls, top = bank.controller.levels, bank.calls, len(bank.controller.levels) - 1
    names = {MANDATORY: "mandatory"} | {n: level.name for n, level in enumerate(levels)}
    of_calls = {names[n] if n >= 0 else "for the memory": k for n, k in calls.levels.items()}
    return {
        "channels": bank.controller.channels,
        "streams": bank.controller.streams,
        "mode": bank.governor.mode.name,
        "cause": bank.governor.cause,
        "at_s": at,
        "levels": list(names.values()),
        "answers": {names[n]: count for n, count in sorted(sums.levels.items())},
        "calls": of_calls,
        "slack": histogram(calls.slack),
        "ratio": histogram(calls.ratio),
        "sure": calls.sure,
        "longer": calls.longer,
        "missed": sums.missed,
        "causes": sums.causes,
        "mandatory": sums.mandatory,
        "reasons": sums.reasons,
        "simpler": sum(count for n, count in sums.levels.items() if 0 <= n < top),
        "left_out": sums.left_out,
        "learn_steps": sums.learn_steps,
        "learn_rejected": sums.learn_rejected,
        "changes": [
            {"at_s": when, "mode": mode.name, "cause": cause} for when, mode, cause in bank.changes
        ],
    }


def budgets(banks: Sequence[Bank]) -> list[dict[str, Any]]:
    """What was spent of what, where anything but time is limited."""
    found = {id(budget): budget for bank in banks if (budget := bank.governor.budget)}
    return [
        {
            "name": name,
            "unit": UNITS[name],
            "spent": account.spent,
            "granted": account.granted,
            "rate": account.rate,
            "price": expm1(account.level),
        }
        for budget in found.values()
        for name, account in budget.accounts.items()
    ]


def account(sums: Counters, strangers: dict[str, int]) -> dict[str, Any]:
    """What became of every sample; received = full + mandatory + shed + in flight.

    Args:
        sums: What all streams have counted.
        strangers: What came of no stream, by reason.
    """
    return {
        "received": sums.received,
        "full": sums.full,
        "mandatory": sums.mandatory,
        "shed": sums.given_up,
        "in_flight": sums.in_flight,
        "in_time": sums.in_time,
        "reasons": sums.reasons,
        "shed_by": sums.shed,
        "missing": sums.missing,
        "duplicates": sums.duplicates,
        "rejected": sums.rejected,
        "of_no_stream": strangers,
        "alarms": sums.alarms,
        "feedback": sums.feedback,
    }


def agent(loop: Loop, health: Health) -> dict[str, Any]:
    """The agent itself."""
    worst = max((bank.governor for bank in loop.banks), key=lambda g: g.mode, default=None)
    memory = health.memory
    return health.snapshot() | {
        "mode": worst.mode.name if worst else "NORMAL",
        "cause": worst.cause if worst else "",
        "allowed_bytes": memory.allowed,
    }


def able(loop: Loop, health: Health, now: float) -> dict[str, Any]:
    """Whether answers are refined, and in time."""
    ready, late = loop.ready.is_set(), health.heartbeat.newest
    deadline = min((track.deadline for track in loop.tracks.values()), default=inf)
    behind = [type(outlet.sink).__name__ for outlet in loop.outlets if outlet.late(now) > deadline]
    return {
        "ready": ready,
        "in_time": late < deadline and not behind,
        "sinks_behind": behind,
        "lag_ms": 1e3 * late,
        "preparing": "" if ready else loop.preparing or "starting",
    }
