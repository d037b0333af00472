"""A line over aiomqtt, which speaks MQTT 3.1.1 and 5: what it leaves to be done underneath it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Never, Self, cast

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from sensors.broker import Broker
from sensors.line import Receive, hurry
from sensors.sample import Unavailable


class AiomqttLine:
    """All that reaches into aiomqtt and below stands here.

    aiomqtt 2.5 hides what delivery without loss needs. paho, under it, has it:

    - Acknowledging by hand (aiomqtt issues 345, 346): else paho acknowledges when its callback
      returns, before anybody has seen the message.
    - The reason code of a PUBACK: aiomqtt returns as if all were well when the broker's access
      list has thrown the message away.
    - Every message: aiomqtt's own queue would drop, once full, what is acknowledged already, and
      starts a task for each message when read. Ours has no bound of its own and hands on at once.
    - The end: who waits for a CONNACK or SUBACK on a connection that is gone waits until a timeout.
    """

    def __init__(self, broker: Broker, number: int, receive: Receive) -> None:
        self.broker, self.number, self._receive = broker, number, receive
        self._loop = asyncio.get_running_loop()
        self._away: asyncio.Future[Never] = self._loop.create_future()
        self._writing = False  # the event loop tells when the socket takes more
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._early: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        """Connect."""
        self.client = await self._client()
        self._paho = self.client._client
        self._paho.manual_ack_set(True)  # before connecting: a kept session delivers at once
        self._paho.on_publish = self._on_publish
        self._paho.on_disconnect = self._on_disconnect
        self.client.pending_calls_threshold = 1 << 16  # we bound them ourselves
        with told():
            await self.client.__aenter__()
        self._take_over()
        return self

    async def __aexit__(self, *problem: Any) -> None:
        """Take leave of the broker, if it is still there."""
        with told():
            await self.client.__aexit__(*problem)

    async def ended(self) -> Never:
        """Wait for the end."""
        with told():
            async for _ in self.client.messages:  # none come here, see `Inbox`
                pass
        raise ConnectionError("the connection ended")

    async def _client(self) -> aiomqtt.Client:
        broker = self.broker
        # Certificates and passwords are read anew each time, so renewed ones are used.
        tls = await asyncio.to_thread(broker.tls_context) if broker.tls else None
        password = broker.password()
        five = broker.version == "5"
        properties = None
        if five:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = broker.receive_maximum
            if not broker.clean_session:
                properties.SessionExpiryInterval = broker.session_expiry_s

        def inbox(maxsize: int) -> asyncio.Queue[aiomqtt.Message]:
            return Inbox(self._arrived)

        return aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.username or None,
            password=password,
            identifier=broker.client_id or None,
            queue_type=cast(type[asyncio.Queue[aiomqtt.Message]], inbox),
            protocol=aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
            clean_session=None if five else broker.clean_session,
            # aiomqtt's default, "first only", would clear a kept session with each new client.
            clean_start=broker.clean_session if five else MQTT_CLEAN_START_FIRST_ONLY,
            timeout=broker.timeout_s,
            keepalive=broker.keepalive_s,
            properties=properties,
            max_inflight_messages=broker.max_inflight,
            tls_context=tls,
            # Without it a small message waits up to 40 ms for the acknowledgement of the last.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )

    def _arrived(self, message: aiomqtt.Message) -> None:
        hurry(self._paho.socket())
        payload = message.payload if isinstance(message.payload, bytes) else b""
        self._receive(message.topic.value, payload, message.qos, message.retain, message.mid)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, code: ReasonCode, properties: Any
    ) -> None:
        answer = self._answers.pop(mid, None)
        if answer is None:
            self._early[mid] = code.value  # called from within publish, before it returned
        elif not answer.done():
            answer.set_result(code.value)

    def _on_disconnect(self, *arguments: Any) -> None:
        self.client._on_disconnect(*arguments)
        # paho calls from another thread if the handshake fails early.
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._away.cancel()
        while self._answers:
            _, answer = self._answers.popitem()
            if not answer.done():
                answer.set_exception(Unavailable("the connection was lost before an answer came"))
                answer.exception()  # whoever waits is told; else asyncio complains
        connected = self.client._connected
        if not connected.done():
            connected.set_exception(aiomqtt.MqttError("closed before the handshake was done"))

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> asyncio.Future[int]:
        """Send."""
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
            await asyncio.wait((asking, self._away), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ConnectionError("the connection was lost while subscribing")
            with told():
                codes = asking.result()
        finally:
            asking.cancel()
        return [code.value if isinstance(code, ReasonCode) else code for code in codes]

    def acknowledge(self, mid: int, qos: int) -> None:
        """Let the broker forget the message with this number."""
        self._paho.ack(mid, qos)

    def _take_over(self) -> None:
        """Write at the end of this turn of the event loop what paho has to send by then.

        aiomqtt has the event loop wake itself, then watch the socket, then write, for each packet:
        with small messages a sixth of all work.
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
        hurry(line)
        if self._paho.want_write() and not self._writing:
            self._writing = True
            self._loop.add_writer(line.fileno(), self._write)

    def _on_written(self, client: Any, userdata: Any, line: Any) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(line.fileno())

    def cut(self) -> None:
        """End it from here; whoever waits is told."""
        self._away.cancel()
        if not hasattr(self, "client"):
            return
        self._paho.disconnect()  # whatever aiomqtt left open after a failed handshake, too
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


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Make an error of aiomqtt one of the operating system's kind, with the reason in it."""
    try:
        yield
    except aiomqtt.MqttError as error:
        reason = error.__cause__ or error
        # The class tells more than the text where the text is empty.
        raise ConnectionError(str(reason) or type(reason).__name__) from error
