"""What one reader receives of a connection."""

import asyncio
from collections.abc import AsyncIterator

from sensors.broker import Refused
from sensors.line import Message


class Subscription:
    """Messages of some topics, for one reader; made by `Connection.subscribe`."""

    def __init__(self, filters: tuple[str, ...], qos: int) -> None:
        self.filters = filters
        # Most are plain topics, and need not be looked through for each topic that comes.
        self.wild = tuple(name for name in filters if {"+", "#", "$"} & set(name))
        self.plain = frozenset(filters) - set(self.wild)
        self.qos = qos
        self.subscribed = 0  # the connection on which the broker was last asked
        self.closed = False
        self.waiting: asyncio.Queue[Message | Refused] = asyncio.Queue()

    def close(self) -> None:
        """Read no more. What comes after stays unacknowledged, so a kept session keeps it."""
        self.closed = True

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield the messages in the order of their arrival, for ever, over reconnections.

        Raises:
            Refused: The broker does not let us subscribe.
        """
        while True:
            message = await self.waiting.get()
            if isinstance(message, Refused):
                raise message
            yield message
