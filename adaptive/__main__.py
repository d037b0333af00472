"""The command line."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from adaptive import config as configuration
from adaptive.isolation import Lost
from sensors.mqtt import Refused

OUT, ERR = Console(), Console(stderr=True)


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit status: 0, or 1 with the reason on standard error."""
    args = parser().parse_args(argv)
    set_up_log(logging.DEBUG if args.verbose else logging.INFO)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        return args.command(args)
    except (ValueError, Lost) as error:  # ConfigError, InputError: what the user handed in
        complain(error)
        return 1
    except ExceptionGroup as group:
        if reasons := refusals(group):
            for reason in reasons:
                complain(reason)
            return 1
        raise
    except KeyboardInterrupt:
        ERR.print("interrupted")
        return 130


def set_up_log(level: int) -> None:
    """Log to standard error: in colour to a terminal, else one line for each record."""
    if ERR.is_terminal:
        handler = RichHandler(console=ERR, show_path=False)
        logging.basicConfig(level=level, format="%(message)s", datefmt="[%X]", handlers=[handler])
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")


def complain(reason: object) -> None:
    """Say on standard error what is wrong."""
    ERR.print("[bold red]error:[/]", Text(str(reason)), highlight=False, soft_wrap=True)


def refusals(group: BaseExceptionGroup) -> list[str]:
    """What the far side refuses, if that is all that went wrong: then no bug is to be found."""
    wrong, other = group.split((Refused, configuration.ConfigError, Lost))
    if other or wrong is None:
        return []
    found: list[str] = []
    for error in wrong.exceptions:
        found += refusals(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="adaptive",
        description="Watch sensor streams: forecast, score, alarm, explain, learn, in time.",
        epilog="Start with `adaptive run`: two simulated sensors, live. Then `adaptive example "
        "> my.toml`, change it, `adaptive check my.toml`, `adaptive run my.toml`.",
    )
    top.add_argument("--version", action="version", version=version("adaptive-attention"))
    top.add_argument("-v", "--verbose", action="store_true", help="say more in the log")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=function)
        return made

    run = command("run", run_agent, "Run the agent until Ctrl-C or until its sources end.")
    run.add_argument("config", nargs="?", type=Path, help="TOML; without it, a simulated example")
    run.add_argument("--for-s", type=float, metavar="SECONDS", help="end after so long")
    run.add_argument("--no-table", action="store_true", help="no live table, only the log")
    run.add_argument("--summary", type=Path, metavar="FILE", help="also write all counters as JSON")

    check = command("check", check_config, "Try a configuration without running it.")
    check.add_argument("config", type=Path)

    command("example", print_example, "Print a configuration to start from.")

    replay = command("replay", replay_recordings, "Take recordings through the agent, causally.")
    replay.add_argument(
        "input",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help=".csv, .csv.gz, .npz, a WFDB record (path without suffix), or a folder of these",
    )
    replay.add_argument("--save", required=True, type=Path, metavar="DIR", help="for the results")
    replay.add_argument(
        "--config", type=Path, metavar="FILE", help="its [model], [alarms] and [agent] tables count"
    )
    replay.add_argument("--columns", type=listed, metavar="A,B", help="channels to take")
    replay.add_argument("--time-column", metavar="NAME", help="default: the first")
    replay.add_argument("--horizon", type=int, metavar="H", help="how far to forecast [samples]")
    replay.add_argument("--labels", type=Path, metavar="FILE", help="CSV time,label[,duration]")
    replay.add_argument(
        "--label-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="a label becomes known so long after its time (default 0)",
    )
    replay.add_argument(
        "--label-until",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="labels of later times are never shown (default: all are)",
    )
    replay.add_argument(
        "--arrays",
        type=listed,
        metavar="train,test",
        help="arrays of an .npz, one after another (default: values)",
    )
    replay.add_argument(
        "--level",
        default="full",
        metavar="auto|full|NAME",
        help="auto: the governor decides by measured cost (default: full)",
    )
    replay.add_argument(
        "--speed",
        default="max",
        metavar="max|FACTOR",
        help="times as fast as recorded (default: max)",
    )
    replay.add_argument("--seed", type=int, metavar="N", help="of the first parameters")

    bench = command("bench", bench_levels, "Measure what each level costs on this machine.")
    bench.add_argument("--config", type=Path, metavar="FILE", help="its [model] table counts")
    bench.add_argument("--channels", type=int, default=2, help="of the stream (default 2)")
    bench.add_argument("--samples", type=int, default=3000, help="scored at each level")
    bench.add_argument(
        "--rate-hz",
        type=float,
        default=0.0,
        help="wait between samples, as in deployment; 0: back to back (default)",
    )
    return top


def listed(text: str) -> list[str]:
    """Names with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


@contextlib.contextmanager
def bar(text: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as progress:
        task = progress.add_task(text, total=total)

        def advance(steps: int = 1, what: str = text, of: int | None = None) -> None:
            progress.update(task, advance=steps, description=what)
            if of is not None:
                progress.update(task, total=of)

        yield advance


# --- run ----------------------------------------------------------------------------------------


def run_agent(args: argparse.Namespace) -> int:
    """`adaptive run`."""
    from adaptive import terminal
    from adaptive.agent import Agent

    started = time.perf_counter()
    config = configuration.load(args.config)
    with bar("compiling", None) as advance:
        agent = Agent(config, lambda what, steps: advance(1, what, steps))
    ERR.print(f"ready after {time.perf_counter() - started:.1f} s", style="dim")
    asyncio.run(supervise(agent, args))
    agent.loop.check()
    # Where answers go to standard output, nothing else may.
    taken = any(getattr(sink, "path", None) == "-" for sink in config.sinks)
    (ERR if taken else OUT).print(terminal.summary(agent.loop))
    if args.summary:
        write_summary(agent.loop, args.summary)
    return 0


async def supervise(agent: Any, args: argparse.Namespace) -> None:
    """Run an agent until it ends, a signal comes, or its time is over."""
    from adaptive import terminal

    running = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    if args.for_s is not None:
        loop.call_later(args.for_s, running.cancel)
    screen = None
    taken = any(getattr(sink, "path", None) == "-" for sink in agent.config.sinks)
    if OUT.is_terminal and not args.no_table and not taken:
        screen = asyncio.create_task(terminal.show(agent.loop, OUT))
    try:
        await running
    except asyncio.CancelledError:
        pass
    finally:
        if screen:
            screen.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await screen


def write_summary(loop: Any, path: Path) -> None:
    """Write the counters and latencies of all streams as JSON."""
    import msgspec

    content = {
        name: track.counters.snapshot()
        | {
            f"latency_p{q}_ms": 1e3 * track.latency.quantile(float(q) / 100)
            for q in ("50", "99", "99.9")
        }
        for name, track in loop.tracks.items()
    }
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
                + f", answered within {1e3 * feed.deadline:g} ms",
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
    level = None if args.level == "auto" else level_index(args.level, names)
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


def level_index(name: str, names: list[str]) -> int:
    """The place of a level in the ladder."""
    if name not in names:
        raise ValueError(f"--level: wanted auto, {', '.join(names)}; got {name!r}")
    return names.index(name)


def positive(text: str, option: str) -> float:
    """A number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise ValueError(f"{option}: wanted max or a number above 0, got {text!r}")


# --- bench --------------------------------------------------------------------------------------


def bench_levels(args: argparse.Namespace) -> int:
    """`adaptive bench`."""
    from adaptive import bench

    if args.channels < 1 or args.samples < 1 or args.rate_hz < 0:
        raise ValueError("--channels and --samples must be at least 1, --rate-hz at least 0")
    model = settings_of(args.config)["model"]
    with bar("compiling", None) as advance:
        bench.levels(
            model,
            args.channels,
            args.samples,
            args.rate_hz,
            lambda name: advance(1, f"compiled {name}"),
            lambda what: OUT.print(what, highlight=False),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
