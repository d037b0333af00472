"""The command line."""

import argparse
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from adaptive import benches, commands
from adaptive.config import ConfigError
from adaptive.console import ERR, complain, set_up_log
from adaptive.isolation import Lost
from sensors.mqtt import Refused


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


def refusals(group: BaseExceptionGroup) -> list[str]:
    """What the far side refuses, if that is all that went wrong: then no bug is to be found."""
    wrong, other = group.split((Refused, ConfigError, Lost))
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
    choices = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, text: str) -> argparse.ArgumentParser:
        made = choices.add_parser(name, help=text, description=text)
        made.set_defaults(command=function)
        return made

    run = command("run", commands.run_agent, "Run the agent until Ctrl-C or until its sources end.")
    run.add_argument("config", nargs="?", type=Path, help="TOML; without it, a simulated example")
    run.add_argument(
        "--for-s", type=float, metavar="SECONDS", help="end so long after the models are ready"
    )
    run.add_argument("--no-table", action="store_true", help="no live table, only the log")
    run.add_argument("--summary", type=Path, metavar="FILE", help="also write all counters as JSON")

    check = command("check", commands.check_config, "Try a configuration without running it.")
    check.add_argument("config", type=Path)

    command("example", commands.print_example, "Print a configuration to start from.")

    replay = command(
        "replay", commands.replay_recordings, "Take recordings through the agent, causally."
    )
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

    why = command("explain", commands.explain_moment, "Say what carried the answer to one sample.")
    why.add_argument("input", type=Path, metavar="INPUT", help="a recording, as for replay")
    why.add_argument(
        "--at", required=True, metavar="TIME", help="of the sample: as in the recording"
    )
    why.add_argument("--config", type=Path, metavar="FILE", help="its [model] and [alarms] count")
    why.add_argument("--columns", type=listed, metavar="A,B", help="channels to take")
    why.add_argument("--time-column", metavar="NAME", help="default: the first")
    why.add_argument("--horizon", type=int, metavar="H", help="how far to forecast [samples]")

    bench = command("bench", benches.bench_machine, "Measure what the agent costs on this machine.")
    bench.add_argument(
        "what",
        nargs="?",
        default="latency",
        choices=("latency", "throughput", "growth", "memory", "start", "ingest", "governor"),
        metavar="WHAT",
        help="latency of one stream (default), throughput of many, growth with channels, horizon "
        "and memory, memory, start, ingest: MQTT in to MQTT out, which needs mosquitto, governor: "
        "against other policies and oracles",
    )
    bench.add_argument("--config", type=Path, metavar="FILE", help="its [model] table counts")
    bench.add_argument(
        "--channels", type=int, default=2, help="of a stream (default 2; of ingest always 1)"
    )
    bench.add_argument(
        "--samples",
        type=int,
        help="of latency: scored at each level (default 3000); of governor: of each world (100000)",
    )
    bench.add_argument("--simulate", action="store_true", help="of governor: in virtual time")
    bench.add_argument(
        "--live", action="store_true", help="of governor: on this machine, under disturbances"
    )
    bench.add_argument(
        "--cases",
        type=listed,
        metavar="A,B",
        help="of governor: what befalls the machine; live quiet,cpu,memory,steps,stops,quota,both, "
        "simulated as in the first table (default: all)",
    )
    bench.add_argument(
        "--record", type=Path, metavar="FILE", help="of governor: what calls cost here, as .npz"
    )
    bench.add_argument(
        "--held-out",
        action="store_true",
        help="of governor, simulated: by the recordings that are kept for final figures",
    )
    bench.add_argument(
        "--alone",
        action="store_true",
        help="of governor, simulated: without other policies and without removing parts, which is "
        "a fifth of the work",
    )
    bench.add_argument(
        "--seeds", type=int, default=20, help="of governor: worlds of each kind (20)"
    )
    bench.add_argument("--workers", type=int, default=2, help="of governor: processes (default 2)")
    bench.add_argument(
        "--rate-hz",
        type=float,
        default=0.0,
        help="of latency: wait between samples, as in deployment; 0: back to back (default)",
    )
    bench.add_argument(
        "--rates",
        type=listed,
        default=["1000", "5000", "10000"],
        metavar="A,B",
        help="of ingest: samples a second, of all streams together (default 1000,5000,10000)",
    )
    bench.add_argument("--streams", type=int, default=512, help="of ingest (default 512)")
    bench.add_argument("--payload", type=int, default=1, help="of ingest: samples in one message")
    bench.add_argument("--qos", type=int, default=0, choices=(0, 1), help="of ingest (default 0)")
    bench.add_argument(
        "--driver", default="mqtt5", choices=("aiomqtt", "mqtt5"), help="of ingest (default mqtt5)"
    )
    bench.add_argument(
        "--seconds",
        type=float,
        help="of ingest, at each rate (10); of governor, of each case and deadline (24) or of each "
        "recording (60)",
    )
    bench.add_argument("--deadline-ms", type=float, default=10.0, help="of ingest (default 10)")

    cost = command(
        "cost", commands.cost_of_levels, "Say what each level takes, and what it is good for."
    )
    cost.add_argument(
        "input", nargs="?", type=Path, metavar="INPUT", help="a recording; default: simulated ECG"
    )
    cost.add_argument("--config", type=Path, metavar="FILE", help="its [model] table counts")
    cost.add_argument("--columns", type=listed, metavar="A,B", help="channels to take")
    cost.add_argument("--time-column", metavar="NAME", help="default: the first")
    cost.add_argument("--horizon", type=int, metavar="H", help="how far to forecast [samples]")
    cost.add_argument("--rows", type=int, default=None, help="only so many (default: all)")

    export = command(
        "export", commands.export_level, "Write the model as StableHLO, for other runtimes."
    )
    export.add_argument("--save", required=True, type=Path, metavar="DIR")
    export.add_argument("--config", type=Path, metavar="FILE", help="its [model] table counts")
    export.add_argument("--channels", type=int, default=2, help="of the stream (default 2)")
    export.add_argument("--level", default="full", metavar="full|NAME", help="default: full")
    return top


def listed(text: str) -> list[str]:
    """Names with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
