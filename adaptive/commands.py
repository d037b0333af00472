"""What each command does; `adaptive.__main__` says which there are."""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

from adaptive import config as configuration
from adaptive.console import ERR, OUT, bar

# --- run ----------------------------------------------------------------------------------------


def run_agent(args: argparse.Namespace) -> int:
    """`adaptive run`."""
    from adaptive import terminal
    from adaptive.agent import Agent

    started = time.perf_counter()
    config = configuration.load(args.config)
    with bar("compiling", None) as advance:
        agent = Agent(config, lambda what, steps: advance(1, what, steps))
    page = None
    if config.page.port:
        from adaptive.page import server

        page = server.opened(config.page, agent.loop, agent.health)
    ERR.print(f"started after {time.perf_counter() - started:.1f} s", style="dim")
    if page:
        once = ", once with ?token= and that of [page] at its end" * bool(config.page.token)
        text = f"what it does is shown at {page.url}{once}"
        ERR.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
    asyncio.run(supervise(agent, args, page))
    agent.loop.check()
    # Where answers go to standard output, nothing else may.
    taken = any(getattr(sink, "path", None) == "-" for sink in config.sinks)
    (ERR if taken else OUT).print(terminal.summary(agent.loop, agent.health))
    if args.summary:
        write_summary(agent, args.summary)
    return 0


async def supervise(agent: Any, args: argparse.Namespace, page: Any = None) -> None:
    """Run an agent, and its page beside, until it ends, a signal comes, or its time is over."""
    from adaptive import terminal

    running = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    screen = limit = shown = None
    if page:
        shown = asyncio.create_task(page.run())
    if args.for_s is not None:
        limit = asyncio.create_task(end_after(agent, args.for_s, running))
    taken = any(getattr(sink, "path", None) == "-" for sink in agent.config.sinks)
    if OUT.is_terminal and not args.no_table and not taken:
        screen = asyncio.create_task(terminal.show(agent.loop, OUT))
    try:
        await running
    except asyncio.CancelledError:
        pass
    finally:
        for task in filter(None, (screen, limit, shown)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def end_after(agent: Any, seconds: float, running: asyncio.Task) -> None:
    """End an agent so long after its models are ready."""
    await agent.loop.ready.wait()
    await asyncio.sleep(seconds)
    running.cancel()


def write_summary(agent: Any, path: Path) -> None:
    """Write the counters and latencies of all streams as JSON.

    Under `#agent` stands how the agent ran, under `#governor` what each bank's calls took: no
    stream can have such a name, since MQTT would not have it in a topic.
    """
    import msgspec

    content = {
        name: track.counters.snapshot()
        | {
            f"latency_p{q}_ms": 1e3 * track.latency.quantile(float(q) / 100)
            for q in ("50", "99", "99.9")
        }
        for name, track in agent.loop.tracks.items()
    } | {"#agent": agent.health.snapshot()}
    content["#governor"] = [bank.calls.snapshot() for bank in agent.loop.banks]
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)))


# --- check, example -----------------------------------------------------------------------------


def check_config(args: argparse.Namespace) -> int:
    """`adaptive check`."""
    config = configuration.load(args.config)
    for feed in config.feeds:
        for raw, made in feed.streams():
            OUT.print(
                f"{made.name}: {', '.join(raw.channels)}"
                + (f" -> {', '.join(made.channels)}" if made.channels != raw.channels else "")
                + (f", {made.sampling_rate:g} Hz" if made.sampling_rate else "")
                + f", answered within {1e3 * feed.deadline:g} ms"
                + (", critical" if feed.rank.critical else "")
                + (
                    f", {feed.rank.firm[0]} of {feed.rank.firm[1]} refined"
                    * bool(feed.rank.firm[0])
                ),
                highlight=False,
            )
    levels = ", ".join(level.name for level in config.model.ladder())
    OUT.print(f"levels: mandatory, {levels}", highlight=False)
    for sink in config.sinks:
        OUT.print(f"results to {sink}", highlight=False)
    if config.connection:
        broker = config.connection.broker
        OUT.print(f"broker {broker.host}:{broker.port} (not tried)", highlight=False)
    OUT.print("[green]this configuration is sound[/]")
    return 0


def print_example(args: argparse.Namespace) -> int:
    """`adaptive example`."""
    sys.stdout.write(configuration.example())
    return 0


# --- replay -------------------------------------------------------------------------------------


def replay_recordings(args: argparse.Namespace) -> int:
    """`adaptive replay`."""
    import dataclasses

    from adaptive import replay
    from adaptive.controller import Controller
    from adaptive.engine import Engine
    from adaptive.prequential import replay_arrays

    config = settings_of(args.config)
    model = config["model"]
    if args.horizon is not None:
        model = dataclasses.replace(model, horizon_samples=args.horizon)
    if args.seed is not None:
        model = dataclasses.replace(model, seed=args.seed)
    names = [level.name for level in model.ladder()]
    level = None if args.level == "auto" else level_index(args.level, names, "auto")
    speed = None if args.speed == "max" else positive(args.speed, "--speed")
    labels = []
    if args.labels:
        labels = replay.read_labels(args.labels, args.label_delay, args.label_until)
    compiled: dict[int, Engine] = {}
    for item in replay.inputs(args.input):
        recording = replay.load(item.path, args.columns, args.time_column, args.arrays)
        channels = len(recording.channels)
        engine = Engine(1, channels, model)
        controller = Controller(1, channels, model, config["alarms"], engine)
        if channels in compiled:
            engine.take_programs(compiled[channels])
        else:
            wanted = None if level is None else [level]
            with bar(f"compiling for {channels} channels", None) as advance:
                for name in engine.warm_up(wanted):
                    advance(1, f"compiled {name}")
            compiled[channels] = engine
        rows = len(recording.values)
        pace = None
        if speed:
            pace = replay.paced(recording.time, speed, time.perf_counter, time.sleep)
        started = time.perf_counter()
        with bar(str(item.name), rows) as advance:
            results = replay_arrays(
                controller,
                recording.time,
                recording.values,
                level=level,
                deadline=config["agent"].deadline_ms / 1e3,
                labels=labels,
                pace=pace,
                progress=advance,
            )
        path = replay.write(args.save, item.name, recording, results)
        per_row = (time.perf_counter() - started) / rows
        OUT.print(
            f"{path}: {rows} rows, {channels} channels, {int(results.alarm.sum())} alarms, "
            f"{1e6 * per_row:.0f} us a row",
            highlight=False,
            soft_wrap=True,
        )
        for note in recording.notes:
            OUT.print(f"  note: {note}", highlight=False, soft_wrap=True)
    return 0


def settings_of(path: Path | None) -> dict[str, Any]:
    """The tables of a configuration that count where there is no sensor."""
    import tomllib

    from adaptive.settings import Alarms, Model

    content: dict[str, Any] = {}
    if path:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise configuration.ConfigError(f"{path}: cannot be read ({error})") from error
        configuration.known(content, configuration.TABLES, str(path))
    kinds = {"model": Model, "alarms": Alarms, "agent": configuration.AgentSettings}
    return {
        name: configuration.table(kind, content.get(name, {}), f"{path}: {name}")
        for name, kind in kinds.items()
    }


def level_index(name: str, names: list[str], *others: str) -> int:
    """The place of a level in the ladder; `others` may be asked for as well."""
    if name not in names:
        raise ValueError(f"--level: wanted {', '.join((*others, *names))}; got {name!r}")
    return names.index(name)


def positive(text: str, option: str) -> float:
    """A number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise ValueError(f"{option}: wanted max or a number above 0, got {text!r}")


# --- explain ------------------------------------------------------------------------------------


def explain_moment(args: argparse.Namespace) -> int:
    """`adaptive explain`."""
    import dataclasses

    import numpy as np

    from adaptive import replay, terminal
    from adaptive.controller import Controller
    from adaptive.engine import Engine
    from adaptive.prequential import blockwise

    config = settings_of(args.config)
    model = config["model"]
    if args.horizon is not None:
        model = dataclasses.replace(model, horizon_samples=args.horizon)
    recording = replay.load(args.input, args.columns, args.time_column)
    row = row_at(args.at, recording.time)
    engine = Engine(1, len(recording.channels), model)
    controller = Controller(1, len(recording.channels), model, config["alarms"], engine)
    level = len(controller.levels) - 1
    with bar("compiling", None) as advance:
        for name in engine.warm_up([level]):
            advance(1, f"compiled {name}")
    values = np.where(np.isfinite(recording.values), recording.values, np.nan)[: row + 1]
    answered = blockwise(controller, values, level, None)
    with bar(f"to row {row}", row + 1) as advance:
        for n in range(row):
            controller.settle(next(answered)[0], float(recording.time[n]), values[n])
            advance()
        answer = controller.settle(next(answered)[0], float(recording.time[row]), values[row])
    stamps = list(replay.timestamps(recording))[: row + 1]
    effects = engine.explain(0, controller.levels[level])
    OUT.print(terminal.explained(answer, effects, stamps, values[row].tolist(), recording.channels))
    return 0


def row_at(text: str, time: Any) -> int:
    """The newest row at a time."""
    import numpy as np

    from adaptive import replay

    try:
        row = int(np.searchsorted(time, replay.seconds(text), side="right")) - 1
    except ValueError:
        raise ValueError(f"--at: wanted a number or an ISO date, got {text!r}") from None
    if row < 0:
        raise ValueError(f"--at: the recording begins at {time[0]:g} s, after {text}")
    return row


# --- cost, export -------------------------------------------------------------------------------


def cost_of_levels(args: argparse.Namespace) -> int:
    """`adaptive cost`."""
    import dataclasses

    from adaptive import cost, replay
    from sensors import SimulatedEcg

    model = settings_of(args.config)["model"]
    if args.horizon is not None:
        model = dataclasses.replace(model, horizon_samples=args.horizon)
    if args.input:
        recording = replay.load(args.input, args.columns, args.time_column)
    else:
        recording = SimulatedEcg(seed=1, duration_s=20).record()
    if args.rows is not None and args.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {args.rows}")
    time, values = recording.time[: args.rows], recording.values[: args.rows]
    if len(values) < 2 * (model.horizon_samples + 1):
        raise ValueError(f"{len(values)} rows are too few for a horizon of {model.horizon_samples}")
    with bar("compiling", None) as advance:
        tables = cost.report(
            model, time, values, lambda name: advance(1, f"compiled {name}"), advance
        )
    for table in tables:
        OUT.print(table)
    return 0


def export_level(args: argparse.Namespace) -> int:
    """`adaptive export`."""
    from adaptive import export
    from adaptive.engine import Engine

    if args.channels < 1:
        raise ValueError(f"--channels must be at least 1, got {args.channels}")
    model = settings_of(args.config)["model"]
    level = level_index(args.level, [level.name for level in model.ladder()])
    try:
        files = export.save(Engine(1, args.channels, model), level, args.save)
    except ImportError as error:
        raise ValueError(f'{error}: pip install "adaptive-attention[export]"') from error
    for path in files:
        OUT.print(f"{path}: {path.stat().st_size} bytes", highlight=False, soft_wrap=True)
    return 0
