"""Models in a process of their own, so that answers are given in time whatever a model does.

In one process the interpreter is one: a thread that has lost the processor while it held the
interpreter keeps everybody else waiting. Measured with a busy process on each of two cores, a
deadline of 20 ms and 360 samples a second over MQTT: with the model in a thread 73 to 84 % of the
answers came in time, called in place 94 %, from a process of its own 97 to 99 %.
"""

import asyncio
import logging
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from adaptive import processor, rehearsal
from adaptive.frames import decode, encode
from adaptive.settings import Model, empty_block

LOG = logging.getLogger(__name__)
SILENT = 300.0  # [s] without a word, also while it compiles: then it hangs
STALL = 5  # [s] that it may let us wait within a message, while nothing else goes on
LOOK = 0.1  # [s] between two looks at whether it hangs
ENDING = 10.0  # [s] from the end of its socket to its own


class Lost(RuntimeError):
    """The process of the models is gone."""


class Process:
    """The process, which ends with this one.

    Attributes:
        patience: What is asked of it beside the event loop is to be answered so soon, or it hangs
            and is killed [s].
        took: How long the last answer took there [s].
        gone: Is told when it ends while nothing is asked of it.
    """

    def __init__(self, cpus: Sequence[int] = ()) -> None:
        """Start it; it imports JAX, which takes a second.

        Args:
            cpus: The processors that it runs on; any if there are none.
        """
        self.cpus = cpus
        self.engines = 0
        self.patience, self.took = SILENT, 0.0
        self.gone: Callable[[Lost], None] | None = None
        # In the order of their answers; and who hears of their steps.
        self._asked: deque[tuple[asyncio.Future, Callable[[str], None]]] = deque()
        self._listens: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._silent = 0.0  # [s] that it has owed an answer and said nothing
        self._spawn()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # within a message; else we hang, too
            ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", STALL, 0))
        with theirs:
            # Without -P a folder named adaptive, where we were started, would stand before ours.
            command = [sys.executable, "-P", "-m", "adaptive.worker", str(theirs.fileno())]
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            with processor.confined(self.cpus):  # JAX looks at it when it is imported
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"PYTHONPATH": paths},
                )
        self.line = Connection(ours.detach())

    def restart(self) -> None:
        """Kill it, if it still lives, and start another, which has no engines yet."""
        self.close(0.0)
        while self._asked:
            asked, _ = self._asked.popleft()
            if not asked.done():
                asked.set_exception(Lost("the process of the models is started anew"))
        self._listens, self.patience = None, SILENT
        self._spawn()

    def ask(self, number: int, name: str, *args: Any) -> Iterator[str]:
        """Call a method of an engine and wait.

        Yields:
            What it yields.

        Returns:
            What it returns.

        Raises:
            Lost: The process is gone.
            RuntimeError: The method failed there.
        """
        while self._asked:  # answers that nobody waits for any more
            self._expect()
            self._answered()
        self._send(number, name, args)
        while True:
            self._expect()
            kind, value = self._receive()
            if kind != "step":
                return value
            yield value

    async def ask_beside(
        self,
        number: int,
        name: str,
        args: Sequence[Any],
        step: Callable[[str], None] = lambda what: None,
    ) -> Any:
        """Call a method of an engine while the event loop goes on; one at a time.

        Args:
            number: Of the engine.
            name: Of the method.
            args: Of the method.
            step: Called with what the method yields.

        Raises:
            Lost: The process is gone.
            RuntimeError: The method failed there.
        """
        loop = asyncio.get_running_loop()
        if self._listens is not loop:
            loop.add_reader(self.line.fileno(), self._answered)
            self._listens = loop
            self._look()
        self._send(number, name, args)
        asked = loop.create_future()
        self._asked.append((asked, step))
        return await asked

    def close(self, patience: float | None = None) -> None:
        """End it, and wait for that so long, `ENDING` at most; one that hangs is killed."""
        if self._listens and not self._listens.is_closed():
            self._listens.remove_reader(self.line.fileno())
        if self._watch:
            self._watch.cancel()
        self.line.close()
        try:
            self.child.wait(ENDING if patience is None else patience)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def _expect(self) -> None:
        """Wait for a word.

        Raises:
            Lost: None comes.
        """
        if not self.line.poll(self.patience):
            self.child.kill()  # as it hangs it would not end by itself either
            raise Lost(f"the process of the models said nothing for {self.patience:.0f} s")

    def _send(self, number: int, name: str, args: Sequence[Any]) -> None:
        try:
            self.line.send_bytes(encode((number, name, args)))
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, value, self.took = decode(self.line.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost(error) from error
        if kind == "failed":
            raise RuntimeError(f"in the process of the models:\n{value}")
        return kind, value

    def _look(self) -> None:
        """Kill it if it hangs. A pause of our own counts as one look, and not as one of its."""
        self._silent = self._silent + LOOK if self._asked else 0.0
        if self._silent > self.patience:
            LOG.error("the process of the models said nothing for %.1f s: killed", self.patience)
            self.child.kill()
        elif self._listens:
            self._watch = self._listens.call_later(LOOK, self._look)

    def _answered(self) -> None:
        """Hand on the answer that has come, or one of its steps."""
        self._silent, value, problem = 0.0, None, None
        try:
            kind, value = self._receive()
            if kind == "step":
                if self._asked and not self._asked[0][0].done():
                    self._asked[0][1](value)
                return
        except RuntimeError as error:
            problem = error
            if isinstance(error, Lost) and self._listens and not self._listens.is_closed():
                self._listens.remove_reader(self.line.fileno())
        asked = self._asked.popleft()[0] if self._asked else None
        if asked is None or asked.done():
            if isinstance(problem, Lost) and self.gone:
                self.gone(problem)
            return
        if problem:
            asked.set_exception(problem)
        else:
            asked.set_result(value)

    def _lost(self, error: Exception) -> Lost:
        code = self.child.poll()
        how = "closed its socket" if code is None else f"ended with code {code}"
        if isinstance(error, BlockingIOError):
            how = f"stopped for {STALL} s within a message"
        return Lost(f"the process of the models {how}; see above for what it said")


class Remote:
    """Stands for an engine in another process; see `adaptive.engine` for the methods."""

    def __init__(self, process: Process, streams: int, channels: int, settings: Model):
        """Say what is wanted; `prepare` makes it."""
        self.process, self.number = process, process.engines
        process.engines += 1
        self._wanted = streams, channels, asdict(settings)
        self._levels = len(settings.ladder())
        self._state: dict[str, np.ndarray] | None = None  # to be taken up when it is made
        self._outputs: dict[str, tuple[int, ...]] = {}

    async def revive(self, step: Callable[[str], None] = lambda name: None) -> None:
        """Have it made and compiled, once more if its process was started anew.

        Args:
            step: Called with the name of each program when it is ready.

        Raises:
            Lost: The process is gone.
            RuntimeError: Something failed there.
        """
        made = await self.beside("make", *self._wanted)
        self._outputs = {name: tuple(shape) for name, shape in made.items()}
        if self._state is not None:
            await self.beside("load", self._state)
            self._state = None
        await self.process.ask_beside(self.number, "warm_up", (None,), step)
        await self.beside("freeze")

    async def prepare(
        self, step: Callable[[str], None] = lambda name: None
    ) -> tuple[list[dict[int, float]], float]:
        """Have it made, compiled and measured while the event loop goes on.

        Args:
            step: Called with the name of each program when it is ready.

        Returns:
            For each level the usual cost [s] of a call, by its samples, and what
            `Engine.learn_cost` returns.

        Raises:
            Lost: The process is gone.
            RuntimeError: Something failed there.
        """
        await self.revive(step)
        return await self.rehearse(), await self.beside("learn_cost")

    @property
    def took(self) -> float:
        """How long the last call took there; what is on the way comes on top [s]."""
        return self.process.took

    async def rehearse(self, pause: float = rehearsal.PAUSE) -> list[dict[int, float]]:
        """Measure what calls cost there, on copies and as they are made from here [s].

        Args:
            pause: Before each call [s].
        """
        laps = rehearsal.Laps()
        streams, channels, _ = self._wanted
        for level in range(self._levels):  # the copies are made, and each program has run once
            await self.beside("rehearse", level, empty_block(channels))
        for level, size, block in rehearsal.calls(self._levels, streams, channels):
            await asyncio.sleep(pause)
            await self.beside("rehearse", level, block)
            laps.add(level, size, self.took)
        await self.beside("rehearsed")
        return laps.costs()

    def outputs(self) -> dict[str, tuple[int, ...]]:
        """As `Engine.outputs`, once it is made."""
        return self._outputs

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """As `Engine.load`, before it is made."""
        self._state = arrays

    def costs(self) -> list[dict[int, float]]:
        """As `Engine.costs`."""
        return self._wait("costs")

    def run(self, level: int, block: np.ndarray) -> np.ndarray:
        """As `Engine.run`."""
        return self._wait("run", level, block)

    def learn(self, stream: int) -> bool:
        """As `Engine.learn`."""
        return self._wait("learn", stream)

    def forget(self, streams: Sequence[int]) -> None:
        """As `Engine.forget`."""
        self._wait("forget", list(streams))

    def arrays(self) -> dict[str, np.ndarray]:
        """As `Engine.arrays`."""
        return self._wait("arrays")

    async def beside(self, name: str, *args: Any) -> Any:
        """Call a method while the event loop goes on; one at a time in each process."""
        return await self.process.ask_beside(self.number, name, args)

    def _wait(self, name: str, *args: Any) -> Any:
        asking = self.process.ask(self.number, name, *args)
        while True:
            try:
                next(asking)
            except StopIteration as end:
                return end.value
