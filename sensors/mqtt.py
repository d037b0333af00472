"""Samples and feedback out of MQTT topics."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sensors import wire
from sensors.broker import Broker as Broker
from sensors.broker import Refused as Refused
from sensors.connection import Connection as Connection
from sensors.connection import Message as Message
from sensors.connection import Subscription as Subscription
from sensors.sample import Item, Rejected, Sample, Stream


@dataclass(frozen=True)
class Topic:
    """One stream and where it is published.

    Attributes:
        topic: Maybe with wildcards, `+` for one level and `#` for the rest; all that match are
            one stream.
        stream: Its name; empty for `topic`.
        channels: Their names, in the order of the values on the wire.
        units: One for each channel; none if they are not known.
        sampling_rate_hz: 0 if it is not known or not regular.
    """

    topic: str
    stream: str = ""
    channels: tuple[str, ...] = ("value",)
    units: tuple[str, ...] = ()
    sampling_rate_hz: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: One of them is out of range or does not match another.
        """
        if not self.topic:
            raise ValueError("a topic must not be empty: name what the sensor publishes to.")
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ValueError(
                f"{self.topic}: channels must be different names, at least one, got "
                f"{list(self.channels)}."
            )
        if self.units and len(self.units) != len(self.channels):
            raise ValueError(
                f"{self.topic}: units must be as many as channels, {len(self.channels)}, got "
                f'{len(self.units)}. Write "" for one that is not known.'
            )
        if not 0 <= self.sampling_rate_hz < float("inf"):
            raise ValueError(
                f"{self.topic}: sampling_rate_hz must be above 0, got {self.sampling_rate_hz}. "
                "Leave it out if the rate is not known."
            )

    def description(self) -> Stream:
        """Describe the stream."""
        units = self.units or ("",) * len(self.channels)
        name = self.stream or self.topic
        return Stream(name, self.channels, units, self.sampling_rate_hz or None)


class _Pending:
    """A message and how many of its samples have not been answered."""

    def __init__(self, message: Message, samples: int) -> None:
        self.message = message
        self.samples = samples


@dataclass(frozen=True)
class MqttSource:
    """Reads streams, and feedback about them, from a broker.

    Payloads are those of `sensors.wire`. A message with QoS 1 is acknowledged when the last of
    its samples has been answered; so after a cut, or a crash, a broker that keeps the session
    delivers again what was not. Such samples come twice at most to the eye of the loop: number
    them at their origin (`sequence` on the wire) to tell. Feedback and rejected payloads are
    acknowledged when they are handed out: a payload that is no good must not come for ever.

    Attributes:
        topics: The streams.
        feedback_topic: Where feedback on any of them comes, each naming its stream; empty for none.
        qos: 1, or 0 for streams where a lost sample matters less than traffic.
        limit_bytes: Payloads that are longer are rejected.
        connection: What to read from; the composition root puts it here, and runs it.
    """

    topics: tuple[Topic, ...]
    feedback_topic: str = ""
    qos: int = 1
    limit_bytes: int = wire.LIMIT
    connection: Connection | None = field(default=None, repr=False, compare=False)
    _pending: dict[tuple[str, int], deque[_Pending]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: There is no topic, or two are the same, or share a stream.
        """
        if not self.topics:
            raise ValueError("a source over MQTT needs at least one topic, got none.")
        if self.qos not in (0, 1) or self.limit_bytes < 1:
            raise ValueError(
                f"qos must be 0 or 1 and limit_bytes above 0, got {self.qos}, {self.limit_bytes}."
            )
        for what, names in (
            ("topics", [*(one.topic for one in self.topics), self.feedback_topic]),
            ("streams", [one.description().name for one in self.topics]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} must differ, got {twice[0]!r} twice.")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """One stream for each topic."""
        return tuple(topic.description() for topic in self.topics)

    def answered(self, sample: Sample) -> None:
        """Acknowledge the message that brought `sample`, if it was the last one of it."""
        waiting = self._pending.get((sample.stream, sample.sequence))
        if not waiting:
            return  # QoS 0, or not ours
        pending = waiting.popleft()
        if not waiting:
            del self._pending[sample.stream, sample.sequence]
        pending.samples -= 1
        if not pending.samples and self.connection:
            self.connection.acknowledge(pending.message)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Yield what arrives, for ever; while the broker is away, nothing.

        Raises:
            ValueError: No connection was given.
            Refused: The broker does not let us subscribe.
        """
        if self.connection is None:
            raise ValueError(
                "a source over MQTT needs a connection, got none. Give it one with "
                "dataclasses.replace(source, connection=Connection(Broker(...))), and run that."
            )
        streams = dict(zip((topic.topic for topic in self.topics), self.streams, strict=True))
        filters = [*streams, self.feedback_topic] if self.feedback_topic else [*streams]
        counts: dict[str, int] = {}
        subscription = await self.connection.subscribe(filters, self.qos)
        try:
            async for message in subscription:
                stream = streams.get(message.filter)
                items = self._decode(message, stream, counts)
                samples = [item for item in items if isinstance(item, Sample)]
                if samples:
                    counts[samples[-1].stream] = samples[-1].sequence + 1
                if message.qos and samples:
                    pending = _Pending(message, len(samples))
                    for sample in samples:
                        key = (sample.stream, sample.sequence)
                        self._pending.setdefault(key, deque()).append(pending)
                else:
                    self.connection.acknowledge(message)
                for item in items:
                    yield item
        finally:
            subscription.close()

    def _decode(
        self, message: Message, stream: Stream | None, counts: dict[str, int]
    ) -> list[Item]:
        if message.retain:
            # It is from before we subscribed, maybe days old, and comes with each reconnection.
            name = stream.name if stream else ""
            detail = f"{message.topic}: kept by the broker; publish samples without `retain`"
            return [Rejected(name, "retained", detail)]
        others = () if stream else self.streams
        items = wire.decode(
            message.payload, stream, others=others, sequence=counts, limit=self.limit_bytes
        )
        return [
            item._replace(detail=f"{message.topic}: {item.detail}")
            if isinstance(item, Rejected)
            else item
            for item in items
        ]
