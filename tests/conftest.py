"""What the tests share: the shape checker, a broker, recordings, virtual time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax


# Checks types and shapes of every call into our packages; must come before they are imported.
# With the tower, an int will do where a float is asked for, as everywhere in Python.
install_import_hook(
    ["adaptive", "sensors"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of recordings; see its README.md."""
    folder = Path(os.environ.get("ADAPTIVE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recordings: {folder} is no folder. Name theirs in ADAPTIVE_DATA.")
    return folder


@pytest.fixture
def virtual_time() -> SimpleNamespace:
    """Runs coroutines in virtual time: `virtual_time.run(main())`."""
    from sensors.testing import virtual_run

    return SimpleNamespace(run=virtual_run)


class Mosquitto:
    """A real broker on a free port of the loopback interface."""

    def __init__(self, folder: Path, lines: str) -> None:
        self.host = "127.0.0.1"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        root = "user root\n" if os.geteuid() == 0 else ""  # else it could not read our folder
        self.config.write_text(
            f"listener {self.port} {self.host}\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 0\n"  # else it drops samples when the machine is slow
            f"{root}{lines}\n"
        )
        self.log = folder / "mosquitto.log"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, "-c", self.config], stdout=log, stderr=log)
        deadline = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection((self.host, self.port), 1.0).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"mosquitto does not listen: {self.log.read_text()}")
                time.sleep(0.01)

    def stop(self) -> None:
        """Kill it, as a cut cable would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def mosquitto_with(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes brokers with further lines of configuration: `mosquitto_with("lines", start=True)`."""
    if not shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin"):
        reason = "mosquitto is not installed: apt-get install mosquitto"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    brokers: list[Mosquitto] = []

    def make(lines: str = "", *, start: bool = True) -> Mosquitto:
        folder = tmp_path / f"mosquitto{len(brokers)}"
        folder.mkdir()
        broker = Mosquitto(folder, lines)
        brokers.append(broker)
        if start:
            broker.start()
        return broker

    yield make
    for broker in brokers:
        broker.stop()


@pytest.fixture
def mosquitto(mosquitto_with: Callable[..., Mosquitto]) -> Mosquitto:
    """A running broker that lets everybody do everything."""
    return mosquitto_with()


class AgentProcess:
    """`adaptive run` in a process of its own."""

    def __init__(self, folder: Path, text: str, options: tuple[str, ...]) -> None:
        self.log = folder / f"agent-{time.monotonic_ns()}.log"
        config = folder / "agent.toml"
        config.write_text(text, encoding="utf-8")
        self.summary = folder / "summary.json"
        command = [sys.executable, "-m", "adaptive", "run", config, "--no-table"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--summary", self.summary, *options],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the agent did not say {text!r}: {self.log.read_text()}")
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> dict:
        """Send a signal; return the summary that it leaves."""
        self.process.send_signal(number)
        self.process.wait(seconds)
        if number == signal.SIGKILL:
            return {}
        assert self.process.returncode == 0, self.log.read_text()
        return json.loads(self.summary.read_text())


@pytest.fixture
def agent_process(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents: `agent_process(toml, "--for-s", "5")`; they end with the test."""
    agents: list[AgentProcess] = []

    def start(text: str, *options: str) -> AgentProcess:
        agents.append(AgentProcess(tmp_path, text, options))
        return agents[-1]

    yield start
    for agent in agents:
        agent.process.kill()
        agent.process.wait()
