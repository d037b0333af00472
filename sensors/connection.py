"""One connection to an MQTT broker, shared by all who read and write, and kept up for ever."""

import asyncio
import itertools
import logging
import random
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Never

import aiomqtt

from sensors.broker import BUSY, REFUSED, Broker, Refused, words
from sensors.driver import driver
from sensors.line import Line
from sensors.line import Message as Message
from sensors.sample import Unavailable
from sensors.subscription import Subscription as Subscription

log = logging.getLogger(__name__)

HOLD = 30.0  # [s] that messages of a kept session wait for someone to subscribe
CHECK = 1.0  # [s] that a connection has to last before back-off starts anew


class Connection:
    """Keeps one connection to a broker, for sources, sinks and feedback together.

    Attributes:
        broker: Whom to talk to.
        counts: connects, failures (to connect, or of a connection), published, refused, received,
            acknowledged, late (acknowledged on a later connection: ignored), dropped (by
            `Broker.max_waiting` or after the reader left; not acknowledged), unwanted (a kept
            session delivers a topic that nobody reads).
    """

    def __init__(
        self,
        broker: Broker,
        *,
        rng: random.Random | None = None,
        base: float = 0.5,
        cap: float = 30.0,
    ) -> None:
        """Prepare; nothing is sent before `run`.

        Args:
            broker: Whom to talk to.
            rng: Draws the waits between attempts; None for one seeded by the system.
            base: The longest first wait between attempts [s]; it doubles with every failure.
            cap: The longest wait of all [s].
        """
        self.broker = broker
        self.counts: Counter[str] = Counter()
        self._rng = rng or random.Random()
        self._base, self._cap = base, cap
        self._numbers = itertools.count(1)
        self._up = asyncio.Event()
        self._line: Line | None = None
        self._subscriptions: list[Subscription] = []
        self._routes: dict[str, tuple[Subscription, str] | None] = {}
        self._held: deque[Message] = deque()
        self._slots = asyncio.Semaphore(broker.max_inflight)
        self._trouble = ""

    @property
    def connected(self) -> bool:
        """Whether the broker is there, and was at its last word."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Wait until the broker is there."""
        await self._up.wait()

    async def run(self) -> Never:
        """Keep connected until cancelled; after a failure wait and try again, for ever.

        The wait after the n-th failure in a row is drawn evenly from 0 to `base * 2**(n - 1)`, at
        most `cap`, so that many agents do not come back all at once.

        Raises:
            ValueError: A password or certificate that `broker` names cannot be read.

        References:
            Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015: "full jitter".
        """
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            before, started = self.counts["connects"], clock()
            try:
                await self._live()
            except OSError as error:
                # The class tells more than the text where the text is empty.
                self._complain(str(error) or type(error).__name__)
            lasted = self.counts["connects"] > before and clock() - started > CHECK
            failures = 1 if lasted else failures + 1
            self.counts["failures"] += 1
            longest = min(self._cap, self._base * 2.0 ** min(failures - 1, 60))
            await asyncio.sleep(self._rng.uniform(0.0, longest))

    async def subscribe(self, filters: Sequence[str], qos: int = 1) -> Subscription:
        """Read some topics, now or as soon as the broker is there, and again after each cut.

        A message that fits several subscriptions goes to the first of them.

        Args:
            filters: Topics, maybe with wildcards.
            qos: At most this quality of service, 0 or 1.

        Returns:
            The messages, to be iterated over. Those with QoS 1 must be given to `acknowledge`.

        Raises:
            ValueError: A filter is malformed or subscribed already, or `qos` is not 0 or 1.
        """
        _check_qos(qos)
        taken = {name for one in self._subscriptions if not one.closed for name in one.filters}
        for name in filters:
            aiomqtt.Wildcard(name)  # raises ValueError
            if name in taken:
                raise ValueError(
                    f"{name!r} is subscribed already: its messages would go to one of two readers. "
                    "Let one source read it, or use another filter."
                )
        subscription = Subscription(tuple(filters), qos)
        self._subscriptions.append(subscription)
        self._routes.clear()
        held, self._held = self._held, deque()
        for topic, _, *rest in held:
            self._route(topic, *rest)
        if self._line and self.connected:
            line = self._line
            try:
                await self._ask(line, subscription)
            except OSError:
                line.cut()  # then everything is asked for anew
        return subscription

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        timeout: float | None = None,
    ) -> None:
        """Publish one message; see `publish_all`."""
        await self.publish_all([(topic, payload)], qos, retain, timeout=timeout)

    async def publish_all(
        self,
        messages: Sequence[tuple[str, bytes]],
        qos: int = 1,
        retain: bool = False,
        *,
        timeout: float | None = None,
    ) -> None:
        """Publish; with QoS 1 return once the broker has taken responsibility for all of it.

        Nothing is queued here beyond this call, and nothing is sent again: who calls keeps the
        messages until this returns.

        Args:
            messages: Topics, without wildcards, and payloads.
            qos: 0 or 1.
            retain: Have the broker keep them for later subscribers.
            timeout: How long to wait for a broker that is away, and for its answers [s]; None for
                `Broker.timeout_s`; 0 to fail at once if it is away.

        Raises:
            Unavailable: The broker is or went away, or did not answer in time. Some messages may
                have arrived all the same.
            Refused: The broker did not accept one; only MQTT 5 tells.
            ValueError: A topic or `qos` is malformed.
        """
        _check_qos(qos)
        if not messages:
            return
        seconds = self.broker.timeout_s if timeout is None else timeout
        where = f"{self.broker.host}:{self.broker.port}"
        topic = messages[0][0]
        if seconds <= 0 and not self.connected:
            raise Unavailable(f"{topic}: the broker {where} is away. {self._trouble}")
        answers: list[asyncio.Future[int]] = []
        try:
            async with asyncio.timeout(seconds or self.broker.timeout_s):
                for topic, payload in messages:
                    if qos:
                        await self._slots.acquire()
                    try:
                        await self._up.wait()
                        if self._line is None:
                            raise Unavailable("the connection was lost")
                        answer = self._line.publish(topic, payload, qos, retain)
                    except BaseException:
                        if qos:
                            self._slots.release()
                        raise
                    if qos:
                        answer.add_done_callback(lambda _: self._slots.release())
                    answers.append(answer)
                codes = [await answer for answer in answers]
        except TimeoutError:
            raise Unavailable(
                f"{topic}: no answer from the broker {where} within {seconds or 'its timeout'} s. "
                f"{self._trouble}"
            ) from None
        except Unavailable as error:
            raise Unavailable(f"{topic}: {error}. {self._trouble}") from None
        finally:
            for answer in answers:
                answer.cancel()  # of one that came too late nobody wants to know
        for (topic, _), code in zip(messages, codes, strict=True):
            if code in BUSY:
                raise Unavailable(f"{topic}: the broker is overloaded, {words(code)}.")
            if code >= REFUSED:
                self.counts["refused"] += 1
                raise Refused(
                    f"{topic}: the broker {where} refused the publication: {words(code)}. Allow "
                    f"{self.broker.username or 'anonymous clients'} to write it, or change the "
                    "topic."
                )
            self.counts["published"] += 1

    def acknowledge(self, message: Message) -> None:
        """Let the broker forget a message; without it the message comes again after a cut.

        One that came over an earlier connection is left alone: the number may by now stand for
        another, and the broker delivers it again if the session was kept.

        MQTT asks for acknowledgements in the order of arrival. They go out in the order of the
        calls, as one slow answer must not hold up the others; brokers match them by number.
        """
        if message.qos == 0:
            return
        if self._line is None or message.connection != self._line.number:
            self.counts["late"] += 1
            return
        self._line.acknowledge(message.mid, message.qos)
        self.counts["acknowledged"] += 1

    async def _live(self) -> Never:
        """Connect, subscribe, and stay until the connection ends."""
        number = next(self._numbers)
        make, receive = driver(self.broker.driver), partial(self._receive, number)
        line = make(self.broker, number, receive)
        try:
            async with line:
                self._line = line
                self.counts["connects"] += 1
                for subscription in self._subscriptions:
                    await self._ask(line, subscription)
                self._up.set()
                if self._trouble:
                    log.info("MQTT broker %s:%d is back", self.broker.host, self.broker.port)
                    self._trouble = ""
                flush = asyncio.get_running_loop().call_later(HOLD, self._flush)
                try:
                    await line.ended()
                finally:
                    flush.cancel()
        finally:
            self._up.clear()
            self._line = None
            self._held.clear()  # not acknowledged: a kept session delivers them again
            line.cut()  # whoever waits for an answer on it

    async def _ask(self, line: Line, subscription: Subscription) -> None:
        if subscription.closed or subscription.subscribed == line.number:
            return
        subscription.subscribed = line.number
        codes = await line.subscribe(subscription.filters, subscription.qos)
        for name, code in zip(subscription.filters, codes, strict=True):
            if code >= REFUSED:
                subscription.waiting.put_nowait(
                    Refused(
                        f"{name}: the broker {self.broker.host}:{self.broker.port} refused the "
                        f"subscription: {words(code)}. Allow "
                        f"{self.broker.username or 'anonymous clients'} to read it, or change the "
                        "topic."
                    )
                )
            elif code < subscription.qos:
                log.warning("%s: asked for QoS %d, granted %d", name, subscription.qos, code)

    def _receive(
        self, number: int, topic: str, payload: bytes, qos: int, retain: bool, mid: int
    ) -> None:
        self.counts["received"] += 1
        self._route(topic, payload, qos, retain, mid, number)

    def _route(self, topic: str, *rest: Any) -> None:
        """Hand a message on, whose other fields are those behind the filter."""
        if topic not in self._routes:
            if len(self._routes) > 100_000:
                self._routes.clear()
            self._routes[topic] = self._find(topic)
        route = self._routes[topic]
        if route is None:
            self._held.append(Message(topic, "", *rest))
            if len(self._held) > self.broker.max_waiting:
                self._unwanted(self._held.popleft())
            return
        subscription, name = route
        if subscription.closed or subscription.waiting.qsize() >= self.broker.max_waiting:
            self.counts["dropped"] += 1
            return
        subscription.waiting.put_nowait(Message(topic, name, *rest))

    def _find(self, topic: str) -> tuple[Subscription, str] | None:
        matches, known = [], aiomqtt.Topic(topic)
        for subscription in self._subscriptions:
            if topic in subscription.plain:
                matches.append((subscription, topic))
            matches += [(subscription, name) for name in subscription.wild if known.matches(name)]
        return min(matches, key=lambda match: match[0].closed, default=None)

    def _flush(self) -> None:
        while self._held:
            self._unwanted(self._held.popleft())

    def _unwanted(self, message: Message) -> None:
        if not self.counts["unwanted"]:
            log.warning(
                "%s: the broker delivers it, but nothing reads it; a session that was kept for "
                "client_id %r has old subscriptions. Change the client_id when topics change.",
                message.topic,
                self.broker.client_id,
            )
        self.counts["unwanted"] += 1
        self.acknowledge(message)

    def _complain(self, error: str) -> None:
        if not self._trouble:
            log.warning(
                "MQTT broker %s:%d is away, trying again until it is back: %s",
                self.broker.host,
                self.broker.port,
                error,
            )
        self._trouble = error


def _check_qos(qos: int) -> None:
    if qos not in (0, 1):
        raise ValueError(
            f"qos must be 0 or 1, got {qos}. Two has no use here: samples carry sequence numbers."
        )
