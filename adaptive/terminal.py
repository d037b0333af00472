"""What the agent shows in a terminal while it runs, and when it ends."""

import asyncio
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adaptive.loop import Loop, Track
from adaptive.model import KINDS

REFRESH = 0.5  # [s]
ALARMS_SHOWN = 6
TRUSTED = 30  # samples before a loss means something


async def show(loop: Loop, console: Console) -> None:
    """Keep a table of all streams on the screen until cancelled."""
    with Live(console=console, auto_refresh=False, screen=False) as live:
        try:
            while True:
                live.update(screen(loop, asyncio.get_running_loop().time()), refresh=True)
                await asyncio.sleep(REFRESH)
        finally:
            live.update(Text(""), refresh=True)


def screen(loop: Loop, now: float) -> RenderableType:
    """The streams, the last alarms, and how to end it."""
    return Group(
        streams(loop.tracks.values(), now),
        alarms(loop.tracks.values()),
        Text("Ctrl-C ends.", style="dim"),
    )


def streams(tracks: Iterable[Track], now: float) -> Table:
    """One line for each stream."""
    table = Table(title="adaptive", title_justify="left", expand=False)
    heads = ("stream", "rate", "level", "p50 / p99", "in time", "missed", "alarms", "loss", "labels")
    for name in heads:
        table.add_column(name, justify="left" if name in ("stream", "level") else "right")
    for track in tracks:
        counters = track.counters
        done = counters.met + counters.missed
        level = level_name(track)
        table.add_row(
            track.stream.name,
            f"{track.rate.at(now):.0f}/s",
            Text(level, style="yellow" if level == "mandatory" else "green"),
            f"{latency(track, 0.5)} / {latency(track, 0.99)} ms",
            f"{100 * counters.met / done:.2f} %" if done else "-",
            Text(str(counters.missed), style="red" if counters.missed else ""),
            f"{counters.alarms} ({1000 * counters.alarms / done:.1f} per 1000)" if done else "0",
            loss(track),
            str(counters.feedback["learned"]),
        )
    return table


def latency(track: Track, q: float) -> str:
    """A quantile of the time from arrival to answer [ms]."""
    return f"{1e3 * track.latency.quantile(q):.1f}"


def level_name(track: Track) -> str:
    """The level of the newest answer."""
    return "mandatory" if track.level < 0 else track.bank.controller.levels[track.level].name


def loss(track: Track) -> str:
    """The model's loss as a share of persistence's."""
    if track.loss is None or track.counters.received < TRUSTED:
        return "-"
    of = dict(zip(KINDS, track.loss.tolist(), strict=True))
    if of["persistence"] <= 0:
        return "-"
    return f"{of['served']:.3f} = {of['served'] / of['persistence']:.2f} x persistence"


def alarms(tracks: Iterable[Track]) -> Table:
    """The newest alarms of all streams, newest first."""
    table = Table(title="last alarms", title_justify="left", box=None, padding=(0, 2))
    for name in ("stream", "time [s]", "strength", "reason"):
        table.add_column(name, style="dim")
    found = [result for track in tracks for result in track.alarms]
    for result in sorted(found, key=lambda r: r.arrival, reverse=True)[:ALARMS_SHOWN]:
        table.add_row(
            result.sample.stream,
            f"{result.sample.time:.2f}",
            f"{result.answer.strength:.2f}",
            result.reason,
        )
    return table


def summary(loop: Loop) -> Table:
    """What became of every sample."""
    table = Table(title="summary", title_justify="left")
    heads = ("stream", "received", "= full", "+ mandatory", "+ shed", "in time", "p50 / p99 / p99.9",
             "missing", "rejected", "alarms", "labels", "learned", "loss")
    for name in heads:
        table.add_column(name, justify="left" if name == "stream" else "right")
    for track in loop.tracks.values():
        c = track.counters
        done = c.met + c.missed
        table.add_row(
            track.stream.name,
            str(c.received),
            str(c.full),
            str(c.mandatory),
            listed(c.shed),
            f"{100 * c.met / done:.3f} %" if done else "-",
            " / ".join(latency(track, q) for q in (0.5, 0.99, 0.999)) + " ms",
            str(c.missing),
            listed(c.rejected | ({"duplicate": c.duplicates} if c.duplicates else {})),
            str(c.alarms),
            f"{c.feedback['received']}",
            f"{c.feedback['learned']} labels, {c.learn_steps} steps",
            loss(track),
        )
    return table


def listed(counts: dict[str, int]) -> str:
    """Counts by reason, or 0."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"
