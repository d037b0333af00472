"""A line over mqtt5, a codec in Rust: MQTT 5 for thousands of messages a second."""

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Never, Self, cast

import mqtt5

from sensors.broker import REFUSED, Broker
from sensors.line import Receive, hurry
from sensors.sample import Unavailable

IDS = 65535  # packet identifiers, from 1
TOO_LARGE = 0x95  # reason code of a packet that is larger than the broker takes


class Mqtt5Line(asyncio.Protocol):
    """One life of the connection, straight on the event loop.

    Written at the end of each turn of the loop is all that was published in it, at once.
    """

    def __init__(self, broker: Broker, number: int, receive: Receive) -> None:
        self.broker, self.number, self._receive = broker, number, receive
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Never] = self._loop.create_future()
        self._welcome: asyncio.Future[mqtt5.ConnAckPacket] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._rest = b""  # of a packet that has not arrived in full
        self._out: list[bytes] = []  # to be written at the end of this turn
        self._written: list[asyncio.Future[int]] = []  # of QoS 0, once that is
        self._paused = False  # the operating system takes no more
        self._answers: dict[int, asyncio.Future[Any]] = {}  # by packet identifier
        self._later: deque[tuple[int, bytes]] = deque()  # more than the broker wants at once
        self._on_way: set[int] = set()  # publications that it has yet to acknowledge
        self._at_once, self._largest, self._keepalive = IDS, float("inf"), broker.keepalive_s
        self._next = 0
        self._heard = self._said = self._loop.time()
        self._beat: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        broker = self.broker
        # Certificates and passwords are read anew each time, so renewed ones are used.
        tls = await asyncio.to_thread(broker.tls_context) if broker.tls else None
        password = broker.password()
        hello = mqtt5.ConnectPacket(
            broker.client_id,
            username=broker.username or None,
            password=None if password is None else password.encode(),
            clean_start=broker.clean_session,
            keep_alive=broker.keepalive_s,
            session_expiry_interval=0 if broker.clean_session else broker.session_expiry_s,
            receive_max=broker.receive_maximum,
        )
        try:
            async with asyncio.timeout(broker.timeout_s):
                await self._loop.create_connection(lambda: self, broker.host, broker.port, ssl=tls)
                self._send(hello.write())
                welcome = await self._welcome
        except TimeoutError:
            self.cut()
            raise ConnectionError(f"no answer within {broker.timeout_s} s") from None
        if int(welcome.reason_code) >= REFUSED:
            self.cut()
            raise ConnectionError(f"the broker does not let us in: {named(welcome.reason_code)}")
        self._at_once = welcome.receive_max
        self._largest = welcome.max_packet_size or self._largest
        if welcome.server_keep_alive is not None:
            self._keepalive = welcome.server_keep_alive
        self._watch()
        return self

    async def __aexit__(self, *problem: Any) -> None:
        """Take leave of the broker, if it is still there."""
        if self._transport and not self._end.done():
            self._send(mqtt5.DisconnectPacket().write())
            self._flush()
            self._transport.close()
        self._finish(ConnectionError("closed from here"))

    async def ended(self) -> Never:
        """Wait for the end."""
        await asyncio.shield(self._end)
        raise ConnectionError("the connection ended")

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> asyncio.Future[int]:
        """Send."""
        if self._end.done():
            raise Unavailable("not sent, the connection was lost")
        answer = self._loop.create_future()
        number = self._number() if qos else None
        packet = mqtt5.PublishPacket(
            topic, payload, qos=mqtt5.QoS(qos), retain=retain, packet_id=number
        ).write()
        if len(packet) > self._largest:
            answer.set_result(TOO_LARGE)
        elif number is None:
            self._send(packet)
            self._written.append(answer)
        else:
            self._answers[number] = answer
            if len(self._on_way) < self._at_once:
                self._on_way.add(number)
                self._send(packet)
            else:
                self._later.append((number, packet))
        return answer

    async def subscribe(self, filters: Sequence[str], qos: int) -> list[int]:
        """Ask, and wait for the reason codes, one for each filter."""
        if self._end.done():
            raise ConnectionError("the connection was lost while subscribing")
        number, most = self._number(), mqtt5.QoS(qos)
        # Marked as kept is then only what is from before, as with every other client.
        asked = [
            mqtt5.TopicFilter(name, max_qos=most, retain_as_published=False) for name in filters
        ]
        answer = self._answers[number] = self._loop.create_future()
        self._send(mqtt5.SubscribePacket(number, asked).write())
        try:
            async with asyncio.timeout(self.broker.timeout_s):
                codes = await answer
        except TimeoutError:
            raise ConnectionError("no answer to a subscription") from None
        except Unavailable as error:
            raise ConnectionError(str(error)) from None
        finally:
            self._answers.pop(number, None)
        return [int(code) for code in codes]

    def acknowledge(self, mid: int, qos: int) -> None:
        """Let the broker forget the message with this number."""
        if not self._end.done():
            self._send(mqtt5.PubAckPacket(mid).write())

    def cut(self) -> None:
        """End it from here; whoever waits is told."""
        if self._transport:
            self._transport.abort()
        self._finish(ConnectionError("cut from here"))

    # --- what the event loop tells --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        if line := transport.get_extra_info("socket"):
            # Without it a small message waits up to 40 ms for the acknowledgement of the last.
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Take whole packets off what has arrived."""
        self._heard = self._loop.time()
        if self._transport:
            hurry(self._transport.get_extra_info("socket"))
        data = self._rest + data if self._rest else data
        view, at = memoryview(data), 0
        try:
            while at < len(data):
                packet, size = mqtt5.read(view[at:])
                at += size
                self._take(packet)
        except IndexError:  # not in full yet
            pass
        except ValueError as error:
            self._finish(ConnectionError(f"the broker sent what is no MQTT: {error}"))
            self.cut()
        self._rest = data[at:]

    def _take(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            number = packet.packet_id  # none with QoS 0
            self._receive(packet.topic, packet.payload, int(packet.qos), packet.retain, number or 0)
        elif isinstance(packet, mqtt5.PubAckPacket):
            self._on_way.discard(packet.packet_id)
            self._answered(packet.packet_id, int(packet.reason_code))
            while self._later and len(self._on_way) < self._at_once:
                number, data = self._later.popleft()
                self._on_way.add(number)
                self._send(data)
        elif isinstance(packet, mqtt5.SubAckPacket):
            self._answered(packet.packet_id, packet.reason_codes)
        elif isinstance(packet, mqtt5.ConnAckPacket) and not self._welcome.done():
            self._welcome.set_result(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket):
            self._finish(ConnectionError(f"the broker ended it: {named(packet.reason_code)}"))

    def _answered(self, number: int, value: Any) -> None:
        answer = self._answers.pop(number, None)
        if answer and not answer.done():
            answer.set_result(value)

    def pause_writing(self) -> None:
        """Take note that the operating system takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Take note that it takes more."""
        self._paused = False
        self._tell_written()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._finish(exc if isinstance(exc, OSError) else ConnectionError("the connection ended"))

    # --- within ---------------------------------------------------------------------------------

    def _number(self) -> int:
        """A packet identifier that is free."""
        for _ in range(IDS):
            self._next = self._next % IDS + 1
            if self._next not in self._answers and self._next not in self._on_way:
                return self._next
        raise Unavailable("not sent, the broker has yet to acknowledge all that may be on the way")

    def _send(self, packet: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packet)

    def _flush(self) -> None:
        if not self._out or not self._transport or self._transport.is_closing():
            return
        data, self._out = b"".join(self._out), []
        self._said = self._loop.time()
        self._transport.write(data)
        hurry(self._transport.get_extra_info("socket"))
        self._tell_written()

    def _tell_written(self) -> None:
        if not self._paused:
            written, self._written = self._written, []
            for answer in written:
                if not answer.done():
                    answer.set_result(0)

    def _watch(self) -> None:
        """Say that we are there when nothing else was said, and listen for the broker."""
        if not self._keepalive or self._end.done():
            return
        now = self._loop.time()
        if now - self._heard > 1.5 * self._keepalive:
            self._finish(ConnectionError(f"no word from the broker for {now - self._heard:.0f} s"))
            self.cut()
            return
        if now - min(self._said, self._heard) >= 0.5 * self._keepalive:
            self._send(mqtt5.PingReqPacket().write())
        self._beat = self._loop.call_later(0.25 * self._keepalive, self._watch)

    def _finish(self, error: OSError) -> None:
        """Tell whoever waits why it has ended; the first reason counts."""
        if self._beat:
            self._beat.cancel()
        waiting = (*self._answers.values(), *self._written)
        self._answers, self._written, self._out = {}, [], []
        self._later.clear()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(Unavailable("the connection was lost before an answer came"))
                answer.exception()  # whoever waits is told; else asyncio complains
        for end in (self._end, self._welcome):
            if not end.done():
                end.set_exception(error)
                end.exception()


def named(code: mqtt5.ConnAckReasonCode | mqtt5.DisconnectReasonCode) -> str:
    """A reason code in words."""
    return f"{code.name.lower().replace('_', ' ')} (0x{int(code):02x})"
