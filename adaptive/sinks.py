"""Where results go: nowhere, a list, a file of JSON lines, an MQTT topic."""

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from adaptive.controller import Answer
from adaptive.settings import EXPERTS
from sensors.mqtt import Connection
from sensors.sample import Sample, Unavailable

ENCODER = msgspec.json.Encoder()
TOGETHER, BYTES = 64, 1 << 16  # answers in one message, at most, and what they may take


class Result(NamedTuple):
    """The answer to a sample, with what a reader needs to judge it."""

    sample: Sample
    answer: Answer
    level: str  # name of the level
    arrival: float  # [s] on the agent's clock
    deadline: float  # [s] on the agent's clock
    channels: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why this moment is strange, in a few words."""
        why = self.answer.estimate.explanation
        odds = f"1 in {min(1 / max(self.answer.p_value, 1e-9), 1e9):.0f}"
        cause = self.answer.estimate.cause
        if why is None:
            return f"{cause}, {odds} (quick look only)"
        if len(self.channels) == 1 or why.channel.max() <= 0:
            return f"{cause}, {odds}"
        return f"{cause}, {odds}, mostly {self.channels[int(why.channel.argmax())]}"


@runtime_checkable
class Sink(Protocol):
    """Takes results."""

    async def write(self, results: Sequence[Result]) -> None:
        """Take results, in order; on return they are in the sink's hands.

        Raises:
            Unavailable: The far side is away; the same results will be handed in again.
        """
        ...

    async def close(self) -> None:
        """Finish; nothing is written afterwards."""
        ...


class Message(msgspec.Struct):
    """A result on the wire; what is not finite becomes null."""

    stream: str
    sequence: int
    time: float
    score: float
    p_value: float
    strength: float
    alarm: bool
    dismissed: bool
    event: float
    level: str
    forecast: list[list[float]]
    spread: list[list[float]]
    latency_ms: float
    slack_ms: float
    reason: str | msgspec.UnsetType = msgspec.UNSET
    attention: dict | msgspec.UnsetType = msgspec.UNSET


def encode(result: Result, now: float, explain: bool) -> bytes:
    """Write a result as JSON.

    Args:
        result: The result.
        now: On the agent's clock [s].
        explain: Whether to say what the answer attended to; alarms always do.
    """
    sample, answer = result.sample, result.answer
    estimate = answer.estimate
    message = Message(
        sample.stream,
        sample.sequence,
        sample.time,
        round(answer.score, 6),
        answer.p_value,
        round(answer.strength, 6),
        answer.alarm,
        answer.dismissed,
        answer.event,
        result.level,
        estimate.forecast.tolist(),
        estimate.spread.tolist(),
        round(1e3 * (now - result.arrival), 3),
        round(1e3 * (result.deadline - now), 3),
    )
    if answer.alarm:
        message.reason = result.reason
    if (explain or answer.alarm) and (attended := attention(result)):
        message.attention = attended
    return ENCODER.encode(message)


def attention(result: Result) -> dict | None:
    """What an answer attended to, as plain numbers; None where it attended to nothing."""
    why = result.answer.estimate.explanation
    return why and {
        "samples_ago": why.lag.tolist(),
        "weight": why.weight.tolist(),
        "channel": dict(zip(result.channels, why.channel.tolist(), strict=True)),
        "forecaster": dict(zip(EXPERTS, why.expert.tolist(), strict=True)),
        "correction": dict(zip(("recall", "encoder"), why.gain.tolist(), strict=True)),
        "encoder": why.encoder or None,
    }


def lists(contents: Sequence[bytes]) -> list[bytes]:
    """Write JSON values as lists of as many as fit: brokers refuse what is too long."""
    groups, size = [], 0
    for content in contents:
        size += len(content) + 1
        if not groups or len(groups[-1]) == TOGETHER or size > BYTES:
            groups.append([])
            size = len(content) + 1
        groups[-1].append(content)
    return [b"[%b]" % b",".join(group) for group in groups]


class ListSink(list):
    """Keeps every result in memory: for notebooks and tests."""

    async def write(self, results: Sequence[Result]) -> None:
        """Append the results."""
        self.extend(results)

    async def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class JsonLinesSink:
    """One JSON object a line."""

    path: str = "-"
    """A file, which is appended to; `-` for standard output."""
    explain: bool = False
    """Say of every answer what it attended to, not of alarms alone."""
    alarms_only: bool = False
    """Leave out everything that is not an alarm."""
    _open: list[io.FileIO] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.path != "-" and (Path(self.path).is_dir() or not Path(self.path).parent.is_dir()):
            raise ValueError(
                f"sink.path must name a file in a folder that exists, got {self.path!r}"
            )

    async def write(self, results: Sequence[Result]) -> None:
        """Append the results, all of them or none."""
        now = asyncio.get_running_loop().time()
        chosen = [r for r in results if r.answer.alarm or not self.alarms_only]
        lines = b"".join(encode(r, now, self.explain) + b"\n" for r in chosen)
        if self.path == "-":
            sys.stdout.write(lines.decode())
            sys.stdout.flush()
            return
        try:
            if not self._open:
                self._open.append(io.FileIO(self.path, "a"))
            append(self._open[0], lines)
        except OSError as error:
            raise Unavailable(f"{self.path}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Close the file."""
        while self._open:
            self._open.pop().close()


def append(file: io.FileIO, content: bytes) -> None:
    """Write all of it; when that fails, as on a full disk, take the beginning back."""
    size = os.fstat(file.fileno()).st_size
    done = 0
    try:
        while done < len(content):
            done += file.write(content[done:])
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


@dataclass(frozen=True)
class MqttSink:
    """Publishes every result to the broker of the agent."""

    topic: str = "adaptive/{stream}/answers"
    """Where to; `{stream}` stands for the stream's name."""
    qos: int = 1
    """0, or 1: then a result counts as published when the broker has taken it."""
    explain: bool = False
    """Say of every answer what it attended to, not of alarms alone."""
    alarms_only: bool = False
    """Leave out everything that is not an alarm."""
    together: bool = False
    """Put up to 64 answers of a stream that are ready at once, 64 KiB at most, into one message, as
    a list; then every message is a list."""
    connection: Connection | None = field(default=None, repr=False, compare=False)
    """The agent's connection, which the configuration hands in."""

    def __post_init__(self) -> None:
        if self.qos not in (0, 1):
            raise ValueError(f"sink.qos must be 0 or 1, got {self.qos}")
        if any(c in self.topic for c in "+#"):
            raise ValueError(f"sink.topic must be without wildcards, got {self.topic!r}")
        try:
            self.topic.format(stream="")
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"sink.topic may have {{stream}} in it and no other braces, got {self.topic!r}"
            ) from error

    async def write(self, results: Sequence[Result]) -> None:
        """Publish the results, all at once, and wait until the broker has them."""
        if self.connection is None:
            raise ValueError("an MQTT sink needs a [broker] in the configuration")
        now = asyncio.get_running_loop().time()
        answers: dict[str, list[bytes]] = {}
        for result in results:
            if result.answer.alarm or not self.alarms_only:
                content = encode(result, now, self.explain)
                answers.setdefault(result.sample.stream, []).append(content)
        messages = [
            (self.topic.format(stream=stream), payload)
            for stream, contents in answers.items()
            for payload in (lists(contents) if self.together else contents)
        ]
        await self.connection.publish_all(messages, self.qos)

    async def close(self) -> None:
        """Do nothing: the connection is the agent's."""
