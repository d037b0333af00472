"""What the agent shows in a terminal while it runs, and when it ends."""

import asyncio
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adaptive.bank import Bank, Track
from adaptive.budget import described
from adaptive.controller import MANDATORY, Answer
from adaptive.decision import NORMAL
from adaptive.health import Health
from adaptive.loop import Loop
from adaptive.settings import EXPERTS
from adaptive.telemetry import Counters

REFRESH = 0.5  # [s]
ALARMS_SHOWN = 6


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
    ready = loop.ready.is_set()
    return Group(
        *([] if ready else [preparing(loop.preparing)]),
        *(capped(bank) for bank in loop.banks if bank.governor.mode != NORMAL),
        streams(loop.tracks.values(), now),
        losses(loop.tracks.values()),
        *spending(loop.banks),
        alarms(loop.tracks.values()),
        Text("Ctrl-C ends.", style="dim"),
    )


def preparing(done: str) -> Text:
    """What is said while the models are being made."""
    text = f"Preparing the models ({done or 'starting'}); until then answers are mandatory scores."
    return Text(text, style="yellow")


def capped(bank: Bank) -> Text:
    """What is said while a governor trusts its model less than usual."""
    mode, cause = bank.governor.mode.name.lower(), bank.governor.cause
    text = f"governor of {bank.controller.channels} channels: {mode}, because of: {cause}"
    return Text(text, style="yellow")


def streams(tracks: Iterable[Track], now: float) -> Table:
    """One line for each stream, no wider than 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stream", no_wrap=True, max_width=14)
    table.add_column("level", no_wrap=True)
    for name in ("rate", "p50 / p99 ms", "in time", "missed", "alarms", "labels"):
        table.add_column(name, justify="right", no_wrap=True)
    for track in tracks:
        counters = track.counters
        level = track.level_name
        table.add_row(
            Text(track.stream.name, style="bold", overflow="ellipsis", no_wrap=True),
            Text(level, style="yellow" if level == "mandatory" else "green"),
            f"{track.rate.at(now):.3g}/s",
            f"{latency(track, 0.5)} / {latency(track, 0.99)}",
            in_time(counters),
            Text(str(counters.missed), style="red" if counters.missed else ""),
            str(counters.alarms),
            str(counters.feedback["learned"]),
        )
    return table


def losses(tracks: Iterable[Track]) -> Text:
    """What each stream's forecasts are worth."""
    found = [(track.stream.name, loss(track)) for track in tracks]
    lines = [f"forecast of {name}: {text}" for name, text in found if text != "-"]
    return Text("\n".join(lines), style="dim")


def in_time(counters: Counters) -> str:
    """The share of the answers that were there by their deadline."""
    share = counters.in_time
    return "-" if isnan(share) else f"{100 * share:.2f} %"


def latency(track: Track, q: float) -> str:
    """A quantile of the time from arrival to answer [ms]."""
    return f"{1e3 * track.latency.quantile(q):.1f}"


def loss(track: Track) -> str:
    """The squared error of the forecasts, against that of 'no change'."""
    ratio = track.error_ratio
    return (
        "-" if isnan(ratio) else f"squared error {100 * ratio:.0f} % of that of 'it stays as it is'"
    )


def spending(banks: Iterable[Bank]) -> list[Text]:
    """What was spent of what, where anything but time is limited."""
    budgets = {id(b): b for bank in banks if (b := bank.governor.budget)}
    return [Text(f"budget: {described(budget)}", style="dim") for budget in budgets.values()]


def alarms(tracks: Iterable[Track]) -> Table:
    """The newest alarms of all streams, newest first."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
    for name in ("last alarms", "time [s]", "score"):
        table.add_column(name, style="dim", justify="left" if name == "last alarms" else "right")
    table.add_column("reason", style="dim", no_wrap=True, overflow="ellipsis")
    found = [result for track in tracks for result in track.alarms]
    for result in sorted(found, key=lambda r: r.arrival, reverse=True)[:ALARMS_SHOWN]:
        table.add_row(
            Text(result.sample.stream, overflow="ellipsis", no_wrap=True),
            f"{result.sample.time:.2f}",
            f"{result.answer.score:.2f}",
            result.reason,
        )
    return table


def summary(loop: Loop, health: Health) -> RenderableType:
    """What became of every sample: a block of lines for each stream, and one for the agent."""
    blocks: list[RenderableType] = []
    for track in loop.tracks.values():
        blocks += block(track.stream.name, lines(track))
    if loop.inbox.rejected:
        blocks += [Text("of no stream", style="bold"), f"  rejected  {listed(loop.inbox.rejected)}"]
    blocks += spending(loop.banks)
    for bank in loop.banks:
        blocks += block(f"governor, {bank.controller.channels} channels", governed(bank))
    return Group(*blocks, *block("the agent", health.lines()))


def block(title: str, said: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Names and texts under a title."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in said:
        table.add_row(f"  {name}", text)
    return [Text(title, style="bold"), table]


def lines(track: Track) -> list[tuple[str, str]]:
    """What is said of one stream in the end, as name and text."""
    c = track.counters
    said, names = c.feedback, [level.name for level in track.bank.controller.levels]
    full = {names[level]: count for level, count in sorted(c.levels.items()) if level >= 0}
    unread = c.rejected | ({"duplicate": c.duplicates} if c.duplicates else {})
    latencies = " / ".join(latency(track, q) for q in (0.5, 0.99, 0.999))
    least, of = track.line.rank.firm
    kept = f"{least} of any {of} answers refined: broken by {track.line.broken}"
    return [
        ("received", f"{c.received} = {c.full} full + {c.mandatory} mandatory + {c.given_up} shed"),
        ("full", listed(full)),
        *([("mandatory", listed(c.reasons))] if c.reasons else []),
        *([("shed", listed(c.shed))] if c.shed else []),
        *([("missed", listed(c.causes))] if c.causes else []),
        *([("promise", kept)] if least else []),
        *([("left out", f"{c.left_out} never seen by the model")] if c.left_out else []),
        ("in time", f"{in_time(c)}, p50 / p99 / p99.9 = {latencies} ms"),
        ("missing", f"{c.missing}, rejected {listed(unread)}"),
        ("alarms", f"{c.alarms}, {c.dismissed} samples kept quiet as dismissed before"),
        ("feedback", f"{said['received']} received, {said['learned']} learned"),
        ("learning", f"{c.learn_steps} gradient steps, {c.learn_rejected} undone"),
        ("forecast", loss(track)),
    ]


def governed(bank: Bank) -> list[tuple[str, str]]:
    """What is said in the end of a bank's calls and their governor, as name and text."""
    calls, levels = bank.calls, bank.controller.levels
    names = {MANDATORY: "for the memory"} | {n: level.name for n, level in enumerate(levels)}
    took = " / ".join(f"{calls.ratio.quantile(q):.2f}" for q in (0.5, 0.99))
    slack = " / ".join(f"{1e3 * calls.slack.quantile(q):.1f}" for q in (0.01, 0.5))
    changes = [f"{mode.name} ({cause})" if cause else mode.name for _, mode, cause in bank.changes]
    return [
        ("calls", listed({names[k]: many for k, many in sorted(calls.levels.items())})),
        ("slack", f"p1 / p50 = {slack} ms"),
        ("took", f"p50 / p99 = {took} times what was expected"),
        ("late", f"{calls.longer} of {calls.sure} calls that were to be in time"),
        *([("modes", ", ".join(changes))] if changes else []),
    ]


def listed(counts: dict[str, int]) -> str:
    """Counts by reason, or 0."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"


def explained(
    answer: Answer,
    effects: Any,
    stamps: Sequence[str],
    values: Sequence[float],
    channels: Sequence[str],
) -> RenderableType:
    """Why an answer is what it is.

    Args:
        answer: At a level with recall.
        effects: `adaptive.explain.Effects` of it.
        stamps: When each sample up to it was taken.
        values: Its own.
        channels: Their names.
    """
    estimate, why = answer.estimate, answer.estimate.explanation
    if why is None:
        raise ValueError("the mandatory answer attends to nothing")
    usual = estimate.surprise.above <= 0
    less = 100 * (1 - answer.p_value)
    said = Text(f"{stamps[-1]}, row {estimate.index}: score {answer.score:.3f}, ")
    said.append(f"stranger than {less:.4g} % of what was before")
    said.append(": nothing unusual" if usual else f": {estimate.cause}", style="bold")
    seen = plain("channel", "value", "foreseen next", "share of distance")
    for c, name in enumerate(channels):
        ahead = f"{estimate.forecast[0, c]:.4g} ± {estimate.spread[0, c]:.2g}"
        seen.add_row(Text(name), f"{values[c]:.4g}", ahead, f"{why.channel[c]:.2f}")
    order = sorted(range(len(effects.lag)), key=lambda k: -effects.weight[k])
    recalled = plain("attended moment", "samples ago", "attention", "effect (sd)")
    for k in order[: len(why.lag)]:
        if effects.weight[k] > 0:
            lag = int(effects.lag[k])
            numbers = f"{effects.weight[k]:.3f}", f"{effects.effect[k]:.4f}"
            recalled.add_row(stamps[-1 - lag], str(lag), *numbers)
    trusted = plain("forecaster", "weight", "effect (sd)")
    for name, *numbers in zip(EXPERTS, effects.expert_weight, effects.expert_effect, strict=True):
        trusted.add_row(name, f"{numbers[0]:.3f}", f"{numbers[1]:.4f}")
    gains = f"recall {why.gain[0]:.2f}, encoder {why.gain[1]:.2f} ({why.encoder or 'off'})"
    tokens = sorted(range(len(effects.looked)), key=lambda k: -effects.looked[k])
    looked = ", ".join(f"{k} ago {effects.looked[k]:.3f}" for k in tokens[: len(why.lag)])
    return Group(
        said,
        "",
        seen,
        "",
        recalled,
        "",
        trusted,
        "",
        *([f"the encoder attended to tokens: {looked}", ""] if looked else []),
        f"corrections served: {gains}. Effect: how far the forecast moves without it.",
    )


def plain(*names: str) -> Table:
    """A table without lines; all but the first column to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table
