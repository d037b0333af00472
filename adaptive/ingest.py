"""`adaptive bench ingest`: how many samples an agent takes from a broker and answers over it.

Broker, agent, sensors and reader are each a process of their own; see `adaptive.load` for the last.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from rich.table import Table

from adaptive.load import SETTLING, Load, read, send
from adaptive.settings import Model

WITHIN = 300.0  # [s] that compiling may take
# Without the first, small answers wait for the acknowledgement of the last, up to 40 ms.
BROKER = "set_tcp_nodelay true\nmax_queued_messages 0\n"
CONFIG = """
[agent]
deadline_ms = {deadline:g}
[page]
port = 0
[broker]
port = {port}
driver = "{driver}"
[[source]]
kind = "mqtt"
qos = {qos}
topics = [{topics}]
[[sink]]
kind = "mqtt"
qos = {qos}
together = {together}
"""


def free_port() -> int:
    """Find one on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def process(*command: object, log: Path) -> Iterator[subprocess.Popen]:
    """Run a program in a group of its own, and end it."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*map(str, command)], stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def broker(folder: Path, options: str = "") -> Iterator[int]:
    """Run a mosquitto on a free port of the loopback interface; give the port.

    Raises:
        ValueError: It is not installed.
    """
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        raise ValueError("mosquitto is not installed: apt-get install mosquitto")
    port, path = free_port(), folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    path.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{options}{user}"
    )
    with process(program, "-c", path, log=folder / "mosquitto.log"):
        time.sleep(0.5)
        yield port


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something.

    Raises:
        RuntimeError: It did not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} within {seconds:.0f} s")
        time.sleep(0.05)


def busy(pid: int) -> float:
    """What processor time a process has taken [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def tables(model: Model) -> str:
    """The [model] table of a configuration."""
    fields = asdict(model)
    levels = fields.pop("levels")

    def lines(named: dict[str, Any]) -> list[str]:
        # Numbers, truths and strings are written in TOML as in JSON.
        return [f"{name} = {msgspec.json.encode(x).decode()}" for name, x in named.items()]

    parts = ["[model]", *lines(fields)]
    for level in levels:
        parts += ["[[model.levels]]", *lines(level)]
    return "\n".join(parts)


def once(model: Model, load: Load) -> tuple[np.ndarray, np.ndarray, Counter, dict[str, float]]:
    """Measure one load.

    Returns:
        Of each answer how late it came after its sample was meant to be sent [s] and its slack
        [ms]; how many were given at each level; processor time a second of each process.
    """
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(broker(folder, BROKER))
        config, log = folder / "agent.toml", folder / "agent.log"
        topics = ", ".join(f'{{topic = "in/{n}", stream = "s{n}"}}' for n in range(load.streams))
        together = "true" if load.samples > 1 else "false"
        text = CONFIG.format(
            port=port, topics=topics, together=together, **load._asdict()
        ) + tables(model)
        config.write_text(text)
        command = (sys.executable, "-m", "adaptive", "run", config, "--no-table")
        agent = stack.enter_context(process(*command, log=log))

        def made() -> bool:
            if agent.poll() is not None:
                raise RuntimeError(f"the agent ended: {log.read_text()}")
            return "models ready" in log.read_text()

        wait(made, WITHIN, "the agent was not ready")
        ready, (receive, result) = spawn.Event(), spawn.Pipe(duplex=False)
        begin = time.monotonic() + 3.0  # imports take a second
        until = begin + SETTLING + load.seconds + 2.0
        reader = spawn.Process(target=read, args=(port, load, until, ready, result))
        sensors = spawn.Process(target=send, args=(port, load, begin))
        for child in (reader, sensors):
            child.start()
            stack.callback(child.kill)
        wait(ready.is_set, 10.0, "the reader was not ready")
        time.sleep(max(begin + SETTLING - time.monotonic(), 0.0))
        (worker,) = children(agent.pid)
        pids = {"event loop": agent.pid, "model": worker}
        before = {name: busy(pid) for name, pid in pids.items()}
        time.sleep(load.seconds)
        used = {name: (busy(pid) - before[name]) / load.seconds for name, pid in pids.items()}
        late, slack, levels = receive.recv()
    return late, slack, levels, used


class Measured(NamedTuple):
    """How an agent bore a load."""

    answered: float  # share of the samples
    late: tuple[float, float, float]  # [ms] from the intended time: p50, p99, p99.9
    in_time: float  # share of the answers
    refined: float  # share of the answers


def measure(model: Model, loads: list[Load], say: Callable[[Any], None]) -> list[Measured]:
    """Measure one load after the other and print the table.

    Args:
        model: Of the agent.
        loads: What the sensors send.
        say: Called with the table.

    Raises:
        ValueError: A load is none.
    """
    for load in loads:
        if min(load.rate, load.streams, load.samples, load.seconds, load.deadline) <= 0:
            raise ValueError(f"rates, streams, payload, seconds must be positive, got {load}")
        if load.counted < 1:
            raise ValueError(
                f"--seconds or --rates must be larger: in {load.seconds:g} s, at {load.rate:g} a "
                f"second and {load.samples} in a message, no message is sent that counts"
            )
    first = loads[0]
    title = (
        f"MQTT in to MQTT out, {first.streams} streams, {first.samples} samples a message, QoS "
        f"{first.qos}, driver {first.driver}: ms from the intended send time"
    )
    table = Table(title=title, title_justify="left")
    heads = "a second", "answered", "p50/p99/p99.9", "in time", "refined", "busy: loop/model"
    for head in heads:
        table.add_column(head, justify="right")
    found = []
    for load in loads:
        late, slack, levels, used = once(model, load)
        p50, p99, p999 = np.quantile(1e3 * late, (0.5, 0.99, 0.999)) if len(late) else [np.nan] * 3
        found.append(
            Measured(
                len(late) / load.counted,
                (float(p50), float(p99), float(p999)),
                float(np.mean(slack >= 0)) if len(slack) else np.nan,
                1 - levels["mandatory"] / max(len(late), 1),
            )
        )
        answered, quantiles, in_time, refined = found[-1]
        table.add_row(
            f"{load.rate:,.0f}",
            f"{answered:.1%}",
            "/".join(f"{q:.1f}" for q in quantiles),
            f"{in_time:.2%}",
            f"{refined:.1%}",
            "/".join(f"{used[name]:.0%}" for name in ("event loop", "model")),
        )
    say(table)
    return found
