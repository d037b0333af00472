"""The sensors and the reader of `adaptive bench ingest`: a load, and how late it is answered.

They speak the least of MQTT 3.1.1, so that they take little of the machine that they share with
the agent. The sensors wait for nobody, and the reader counts from the moment at which a sample was
meant to be sent, so an agent that falls behind cannot hide it.

References:
    Tene, How NOT to measure latency, 2015: "coordinated omission".
"""

import contextlib
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

SETTLING = 2.0  # [s] at the start that do not count
# [s] in which sensors and reader gather what is due: it counts as the agent's, but they must leave
# it the machine, which they would not share with it elsewhere.
PAUSE = 1e-3
APART = 1e6  # [Hz] of the samples in one payload


class Load(NamedTuple):
    """What the sensors send."""

    rate: float  # [samples/s] of all streams together
    streams: int
    samples: int  # in a payload
    seconds: float
    qos: int
    deadline: float  # [ms]
    driver: str  # of the agent's connection

    @property
    def messages(self) -> int:
        """How many there are in all."""
        return round(self.rate * (SETTLING + self.seconds) / self.samples)

    @property
    def counted(self) -> int:
        """How many samples count."""
        return (self.messages - math.ceil(SETTLING / self.gap - 1e-9)) * self.samples

    @property
    def gap(self) -> float:
        """Time between two messages [s]."""
        return self.samples / self.rate


class _Answer(msgspec.Struct):
    """What the reader looks at."""

    time: float
    level: str
    slack_ms: float


# --- the least of MQTT 3.1.1 that a load needs --------------------------------------------------


def packet(kind: int, *parts: bytes) -> bytes:
    """A control packet."""
    body, length = b"".join(parts), b""
    left = len(body)
    while not length or left:
        left, low = divmod(left, 128)
        length += bytes([low | (0x80 if left else 0)])
    return bytes([kind]) + length + body


def text(content: str) -> bytes:
    """A string behind its length."""
    return struct.pack(">H", len(content)) + content.encode()


def connected(port: int, name: str) -> socket.socket:
    """Connect to a broker on this machine."""
    line = socket.create_connection(("127.0.0.1", port))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.sendall(packet(0x10, text("MQTT"), b"\x04\x02", struct.pack(">H", 0), text(name)))
    if line.recv(4) != b"\x20\x02\x00\x00":
        raise ConnectionError(f"the broker on port {port} refuses {name}")
    return line


def packets(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole packets off the front of what has been received: the first byte, and the rest."""
    at = 0
    while True:
        length = shift = 0
        end = at + 1
        while end < len(buffer):
            byte = buffer[end]
            end += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            break
        if end + length > len(buffer):
            break
        yield buffer[at], bytes(buffer[end : end + length])
        at = end + length
    del buffer[:at]


# --- sensors, reader ----------------------------------------------------------------------------


def send(port: int, load: Load, begin: float) -> None:
    """Be the sensors: every message when its time has come, whatever became of those before."""
    line = connected(port, "sensors")
    rng = np.random.default_rng(0)
    values = (np.sin(np.arange(4096) / 20) + rng.normal(0, 0.1, 4096)).astype("<f4")
    heads = [text(f"in/{stream}") for stream in range(load.streams)]
    encode = msgspec.msgpack.encode if load.samples > 1 else msgspec.json.encode
    sent = 0
    while sent < load.messages:
        due = min(int((time.monotonic() - begin) / load.gap) + 1, load.messages)
        chunk = []
        for number in range(sent, due):
            turn, stream = divmod(number, load.streams)
            at = turn * load.samples % (len(values) - load.samples)
            fields: dict[str, Any] = {"time": begin + number * load.gap}
            if load.samples > 1:
                fields |= {"sampling_rate_hz": APART}
                fields["values"] = values[at : at + load.samples].tobytes()
            else:
                fields["values"] = [float(values[at])]
            identifier = struct.pack(">H", number % 65535 + 1) if load.qos else b""
            chunk.append(packet(0x30 | load.qos << 1, heads[stream], identifier, encode(fields)))
        if chunk:
            line.sendall(b"".join(chunk))
            sent = due
            if load.qos:
                # Nobody waits for the acknowledgements, but the broker must be rid of them.
                with contextlib.suppress(BlockingIOError):
                    line.recv(1 << 20, socket.MSG_DONTWAIT)
        time.sleep(max(begin + sent * load.gap - time.monotonic(), PAUSE))
    line.close()


def read(port: int, load: Load, until: float, ready: Any, result: Any) -> None:
    """Be the reader: note how late each answer is."""
    line = connected(port, "reader")
    line.sendall(packet(0x82, b"\x00\x01", text("adaptive/+/answers"), bytes([load.qos])))
    buffer, late, levels, slack = bytearray(), [], Counter(), []
    line.settimeout(0.5)
    decode = msgspec.json.Decoder(list[_Answer] if load.samples > 1 else _Answer).decode
    first = None
    while time.monotonic() < until:
        try:
            buffer += line.recv(1 << 18)
        except TimeoutError:
            continue
        now, confirm = time.monotonic(), []
        for kind, body in packets(buffer):
            if kind >> 4 == 9:
                ready.set()
            if kind >> 4 != 3:
                continue
            start = 2 + int.from_bytes(body[:2], "big")
            if kind & 6:
                confirm.append(packet(0x40, body[start : start + 2]))
                start += 2
            answers = decode(body[start:])
            for answer in answers if isinstance(answers, list) else [answers]:
                if first is None:
                    first = answer.time
                if answer.time - first >= SETTLING:
                    late.append(now - answer.time)
                    levels[answer.level] += 1
                    slack.append(answer.slack_ms)
        if confirm:
            line.sendall(b"".join(confirm))
        time.sleep(PAUSE)
    result.send((np.array(late), np.array(slack), levels))
