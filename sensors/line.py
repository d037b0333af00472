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
        self._loop = asyncio.get_running_loop()
        self.away: asyncio.Future[Never] = self._loop.create_future()
        self._writing = False  # the event loop tells when the socket takes more
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
        answer = self._answers.pop(mid, None)
        if answer is None:
            self._early[mid] = code.value  # called from within publish, before it returned
        elif not answer.done():
            answer.set_result(code.value)

    def hurry(self) -> None:
        """Have the kernel confirm at once what comes; to be called with each message and write.

        A broker with Nagle's algorithm, as mosquitto has it unless told otherwise, keeps a small
        packet back until the one before is confirmed, and our kernel would wait up to 40 ms with
        that. It forgets this setting with whatever it sends, hence again and again. Over a
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
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.away.cancel()
        while self._answers:
            _, answer = self._answers.popitem()
            if not answer.done():
                answer.set_exception(Unavailable("the connection was lost before an answer came"))
                answer.exception()  # whoever waits is told; else asyncio complains
        connected = self.client._connected
        if not connected.done():
            connected.set_exception(aiomqtt.MqttError("closed before the handshake was done"))

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> asyncio.Future[int]:
        """Send.

        Returns:
            The reason code of the broker, when it comes; 0 with QoS 0, once it is written.

        Raises:
            Unavailable: The connection was lost. Later, the future raises it.
        """
        self._early.clear()
        info = self._paho.publish(topic, payload, qos, retain)
        if info.rc:
            raise Unavailable(f"not sent, the connection was lost (code {int(info.rc)})")
        answer = self._loop.create_future()
        if info.mid in self._early:
            answer.set_result(self._early.pop(info.mid))
        else:
            self._answers[info.mid] = answer
        return answer

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

    def take_over(self) -> None:
        """Write at the end of this turn of the event loop what paho has to send by then.

        aiomqtt has the event loop wake itself, then watch the socket, then write, for each packet:
        with small messages a sixth of all work. To be called once connected.
        """
        self._paho.on_socket_register_write = self._on_queued
        self._paho.on_socket_unregister_write = self._on_written

    def _on_queued(self, client: Any, userdata: Any, line: Any) -> None:
        self._loop.call_soon(self._write)

    def _write(self) -> None:
        line = self._paho.socket()
        if line is None:
            return
        try:
            self._paho.loop_write()
        except Exception as error:
            if not self.client._disconnected.done():
                self.client._disconnected.set_exception(error)
            return
        self.hurry()
        if self._paho.want_write() and not self._writing:
            self._writing = True
            self._loop.add_writer(line.fileno(), self._write)

    def _on_written(self, client: Any, userdata: Any, line: Any) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(line.fileno())

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
