"""One life of a connection to an MQTT broker: what aiomqtt leaves to be done underneath it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Never

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from sensors.sample import Unavailable

QUICK = getattr(socket, "TCP_QUICKACK", None)  # only Linux has it


class Message(NamedTuple):
    """A message that has arrived."""

    topic: str
    filter: str  # the subscribed topic, maybe with wildcards, that brought it
    payload: bytes
    qos: int
    retain: bool  # it was kept by the broker, from before we subscribed
    mid: int  # the broker's number for it, on the connection that brought it
    connection: int  # counts the connections; acknowledging is possible only on the same one


class Line:
    """One life of the connection: all that reaches into aiomqtt and below stands here.

    aiomqtt 2.5 hides what delivery without loss needs. paho, under it, has it:

    - Acknowledging by hand (aiomqtt issues 345, 346): else paho acknowledges when its callback
      returns, before anybody has seen the message.
    - The reason code of a PUBACK: aiomqtt returns as if all were well when the broker's access
      list has thrown the message away.
    - Every message: aiomqtt's own queue would drop, once full, what is acknowledged already, and
      starts a task for each message when read. Ours has no bound of its own and hands on at once.
    - The end: who waits for a CONNACK or SUBACK on a connection that is gone waits until a timeout.
    """

    def __init__(self, client: aiomqtt.Client, number: int) -> None:
        self.client = client
        self.number = number
        self.away: asyncio.Future[Never] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._early: dict[int, int] = {}
        self._paho = client._client
        self._paho.manual_ack_set(True)  # before connecting: a kept session delivers at once
        self._paho.on_publish = self._on_publish
        self._paho.on_disconnect = self._on_disconnect
        client.pending_calls_threshold = 1 << 16  # we bound them ourselves

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, code: ReasonCode, properties: Any
    ) -> None:
        self.hurry()
        answer = self._answers.get(mid)
        if answer is None:
            self._early[mid] = code.value  # called from within publish, before it returned
        elif not answer.done():
            answer.set_result(code.value)

    def hurry(self) -> None:
        """Have the kernel confirm at once what comes; to be called for each packet, in and out.

        A broker with Nagle's algorithm, as mosquitto has it unless told otherwise, keeps a small
        packet back until the one before is confirmed, and our kernel would wait up to 40 ms with
        that. It forgets this setting with whatever it sends, hence for each packet. Over a
        mosquitto 2.0.11 on the same machine, with 360 samples a second, the median from
        publishing an answer to its acknowledgement fell from 25 ms to 0.5 ms.
        """
        line = self._paho.socket()
        if QUICK is not None and line is not None:
            with contextlib.suppress(OSError):
                line.setsockopt(socket.IPPROTO_TCP, QUICK, 1)  # pyright: ignore

    def _on_disconnect(self, *arguments: Any) -> None:
        self.client._on_disconnect(*arguments)
        # paho calls from another thread if the handshake fails early.
        self.away.get_loop().call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.away.cancel()
        connected = self.client._connected
        if not connected.done():
            connected.set_exception(aiomqtt.MqttError("closed before the handshake was done"))

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> int:
        """Send, and wait for the reason code of the broker; 0 with QoS 0, once it is written."""
        self._early.clear()
        info = self._paho.publish(topic, payload, qos, retain)
        self.hurry()
        if info.rc:
            raise Unavailable(f"not sent, the connection was lost (code {int(info.rc)})")
        if info.mid in self._early:
            return self._early.pop(info.mid)
        answer = self._answers[info.mid] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((answer, self.away), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Unavailable("the connection was lost while waiting for the acknowledgement")
        finally:
            del self._answers[info.mid]

    async def subscribe(self, filters: Sequence[str], qos: int) -> list[int]:
        """Ask, and wait for the reason codes, one for each filter."""
        asking = asyncio.ensure_future(self.client.subscribe([(name, qos) for name in filters]))
        try:
            await asyncio.wait((asking, self.away), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise aiomqtt.MqttError("the connection was lost while subscribing")
            codes = asking.result()
        finally:
            asking.cancel()
        return [code.value if isinstance(code, ReasonCode) else code for code in codes]

    def acknowledge(self, mid: int, qos: int) -> None:
        """Let the broker forget the message with this number."""
        self._paho.ack(mid, qos)
        self.hurry()

    def cut(self) -> None:
        """End it from here; reading ends with an error."""
        self._paho.disconnect()
        ended = self.client._disconnected
        if ended.done() and not ended.cancelled():
            ended.exception()  # else asyncio complains that nobody asked


class Inbox(asyncio.Queue[aiomqtt.Message]):
    """Stands where aiomqtt wants its queue, hands each message on and stays empty."""

    def __init__(self, receive: Callable[[aiomqtt.Message], None]) -> None:
        super().__init__()
        self._hand_on = receive

    def put_nowait(self, item: aiomqtt.Message) -> None:
        """Hand it on."""
        self._hand_on(item)
