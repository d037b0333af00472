"""What an agent can say about how it runs, rather than about its streams."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from typing import Any

from adaptive.garbage import Collections, Collector
from adaptive.heartbeat import Heartbeat
from adaptive.loop import Loop
from adaptive.memory import Memory

LOG = logging.getLogger(__name__)
ASK = 5.0  # [s] between two questions to the process of the models
PATIENCE = 1.0  # [s] that the last question is waited for
# Of the shortest deadline, what a full collection may take of it: a sample that comes meanwhile
# waits for its end.
SHARE = 0.25


class Health:
    """The lag of the event loop, compilations, and garbage, here and where the models run.

    Attributes:
        heartbeat: Of the event loop.
        collector: Of this process.
        compiled: Programs that were compiled after the start, by name; there should be none.
        worker: The collections of the models' process; None before it was asked, and without one.
        memory: What is held of what may be.
    """

    def __init__(self, loop: Loop, apart: bool, memory: Memory):
        """Begin with nothing.

        Args:
            loop: Of the agent.
            apart: Whether the models run in a process of their own.
            memory: Is looked at elsewhere.
        """
        self.loop, self.apart, self.memory = loop, apart, memory
        self.heartbeat = Heartbeat(self._rest)
        self.compiled: dict[str, int] = {}
        self.worker: Collections | None = None
        self._margin = SHARE * min((t.deadline for t in loop.tracks.values()), default=0.0)
        self.collector = Collector(self._time)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    def _rest(self) -> None:
        self.collector.rest(self._busy)

    def _busy(self, seconds: float) -> bool:
        """Whether an answer would be late for a pause; when nothing is queued there is time."""
        waits = any(bank.backlog.head() for bank in self.loop.banks)
        return waits or seconds > self._margin

    async def run(self) -> None:
        """Watch until cancelled."""
        self.collector.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.heartbeat.run())
                await self.loop.ready.wait()
                while True:
                    await asyncio.sleep(ASK)
                    try:
                        await self._ask()
                    except RuntimeError as error:
                        self.loop.renew(error)
        finally:
            with suppress(TimeoutError, RuntimeError):
                await asyncio.wait_for(self._ask(), PATIENCE)
            self.collector.stop()

    async def _ask(self) -> None:
        """Ask how the models are."""
        if not (self.loop.ready.is_set() and self.loop.banks):
            return
        engine = self.loop.banks[0].controller.engine  # of any: it is about their process
        async with self.loop.model:
            compiled = dict(await engine.beside("compiled"))
            if self.apart:
                self.worker = Collections(*await engine.beside("collections"))
        if compiled != self.compiled:
            LOG.warning(
                "compiled while samples are answered, which keeps them waiting: %s. All programs "
                "should be compiled before the first; please report this.",
                listed(compiled),
            )
        self.compiled = compiled

    def lines(self) -> list[tuple[str, str]]:
        """What is said of it in the end, as name and text."""
        lag, stalls = self.heartbeat.lag, self.heartbeat.stalls
        late = " / ".join(f"{1e3 * lag.quantile(q):.1f}" for q in (0.5, 0.99, 0.999, 1.0))
        return [
            ("loop's lag", f"p50 / p99 / p99.9 / worst = {late} ms, {stalls} stalls"),
            ("compiled", f"{listed(self.compiled) or 'nothing'} after the start"),
            ("garbage", self.collector.told().text),
            *([("of models", self.worker.text)] if self.worker else []),
            ("memory", str(self.memory)),
        ]

    def snapshot(self) -> dict[str, Any]:
        """The same as plain numbers."""
        lag = {q: 1e3 * self.heartbeat.lag.quantile(q / 100) for q in (50.0, 99.0, 99.9, 100.0)}
        return {f"lag_p{q:g}_ms": x if isfinite(x) else None for q, x in lag.items()} | {
            "stalls": self.heartbeat.stalls,
            "compiled": self.compiled,
            "held_bytes": self.memory.held,
            "collections": self.collector.told()._asdict(),
            "collections_models": self.worker._asdict() if self.worker else None,
        }


def listed(counts: Mapping[str, int]) -> str:
    """Names with how often each came."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())
