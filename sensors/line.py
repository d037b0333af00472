"""One life of a connection to an MQTT broker: what every driver offers."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Never, Protocol, Self, runtime_checkable

QUICK = getattr(socket, "TCP_QUICKACK", None)  # only Linux has it
# Called with what arrives: topic, payload, QoS, whether the broker had kept it, its number there.
Receive = Callable[[str, bytes, int, bool, int], None]


class Message(NamedTuple):
    """A message that has arrived."""

    topic: str
    filter: str  # the subscribed topic, maybe with wildcards, that brought it
    payload: bytes
    qos: int
    retain: bool  # it was kept by the broker, from before we subscribed
    mid: int  # the broker's number for it, on the connection that brought it
    connection: int  # counts the connections; acknowledging is possible only on the same one


@runtime_checkable
class Line(Protocol):
    """One life of the connection; made with a broker, its number, and who hears what arrives."""

    number: int

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            OSError: The broker is away, or does not let us in.
            ValueError: A password or certificate that `broker` names cannot be read.
        """
        ...

    async def __aexit__(self, *problem: object) -> None:
        """Take leave of the broker, if it is still there."""
        ...

    async def ended(self) -> Never:
        """Wait for the end.

        Raises:
            OSError: It has come, and why.
        """
        ...

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> asyncio.Future[int]:
        """Send.

        Returns:
            The reason code of the broker, when it comes; 0 with QoS 0, once the operating system
            takes more.

        Raises:
            Unavailable: The connection was lost. Later, the future raises it.
            ValueError: The topic is malformed.
        """
        ...

    async def subscribe(self, filters: Sequence[str], qos: int) -> list[int]:
        """Ask, and wait for the reason codes, one for each filter.

        Raises:
            OSError: The connection was lost, or no answer came in time.
        """
        ...

    def acknowledge(self, mid: int, qos: int) -> None:
        """Let the broker forget the message with this number."""
        ...

    def cut(self) -> None:
        """End it from here; whoever waits is told."""
        ...


def hurry(line: Any) -> None:
    """Have the kernel confirm at once what comes; to be called with what is read and written.

    A broker with Nagle's algorithm, as mosquitto has it unless told otherwise, keeps a small
    packet back until the one before is confirmed, and our kernel would wait up to 40 ms with
    that. It forgets this setting with whatever it sends, hence again and again. Over a
    mosquitto 2.0.11 on the same machine, with 360 samples a second, the median from
    publishing an answer to its acknowledgement fell from 25 ms to 0.5 ms.
    """
    if QUICK is not None and line is not None:
        with contextlib.suppress(OSError):
            line.setsockopt(socket.IPPROTO_TCP, QUICK, 1)
