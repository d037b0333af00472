"""The agent: the parts that a configuration names, put together, run, saved and restored."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from adaptive import checkpoint, processor
from adaptive.backlog import Line
from adaptive.bank import Bank, Track
from adaptive.config import Config, ConfigError
from adaptive.controller import Controller, engine_arrays
from adaptive.feedback import Pending
from adaptive.governor import Governor
from adaptive.health import Health
from adaptive.isolation import Lost, Process, Remote
from adaptive.loop import Loop
from adaptive.snapshot import Snapshot, filled
from adaptive.spending import Spending
from adaptive.telemetry import Counters
from sensors.driver import driver

LOG = logging.getLogger(__name__)
RENEW = 3600.0  # [s] between two starts of the models for the memory that they hold


class Agent:
    """Everything that runs, made from a configuration."""

    def __init__(self, config: Config, progress: Callable[[str, int], None] | None = None):
        """Put together and restore; nothing is read from a sensor yet.

        With the models in a process of their own `run` has them compiled and measured while it
        gives mandatory answers; without it that is done here.

        Args:
            config: What to run.
            progress: Called with what was just done, and how many steps there are in all.

        Raises:
            ConfigError: The checkpoint cannot be used or written, or processors are not there.
        """
        self.config, self.path = config, None
        self._saving = threading.Lock()  # a save that is cancelled goes on in its thread
        if config.connection:
            try:  # each connection reads them anew, but what is missing must stop the start
                driver(config.connection.broker.driver)
                config.connection.broker.password()
                config.connection.broker.tls_context()
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if config.agent.checkpoint_path:
            self.path = Path(config.agent.checkpoint_path)
            with refused():
                checkpoint.check_writable(self.path)
        for name in ("cpus", "worker_cpus"):
            try:
                processor.check(getattr(config.agent, name))
            except ValueError as error:
                raise ConfigError(f"agent.{name}: {error}") from error
        apart = config.agent.isolation == "process"
        self.process = Process(config.agent.worker_cpus or config.agent.cpus) if apart else None
        processor.confine(config.agent.cpus)
        self._say = progress or (lambda what, steps: None)
        self._governors: list[dict[str, float]] = []  # as they were, to be restored
        self._steps = self._done = 0  # of getting ready
        try:
            self.banks, self.tracks = assemble(config, self.process)
            self.loop = Loop(
                [feed.source for feed in config.feeds],
                self.tracks,
                self.banks,
                config.sinks,
                prepare=self._prepare if self.process else None,
            )
            if self.process:
                self.process.gone = self.loop.renew
            self.spending = Spending(config.governor, self.banks, self._processes)
            self.health = Health(self.loop, self.process is not None, self.spending.memory)
            learns = bool(config.model.learn_every_samples)
            self._steps = sum(len(bank.controller.levels) + learns + 1 for bank in self.banks)
            if self.path:
                with refused():
                    self._restore(self.path)
            for number, bank in enumerate(self.banks):
                if not isinstance(engine := bank.controller.engine, Remote):
                    for name in engine.warm_up():
                        self._compiled(bank, name)
                    self._start(number, engine.costs(), engine.learn_cost())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process of the models, if there is one."""
        if self.process:
            # While it compiles it does not see that nobody waits any more.
            self.process.close(None if self._done == self._steps else 0.0)

    def _processes(self) -> list[int]:
        """Those of which the CPU time counts, besides this one."""
        return [self.process.child.pid] if self.process else []

    # --- getting ready --------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Have the models made in their process, while everything else goes on.

        When that was done before, the process is started anew: what they had learned is taken from
        the last checkpoint.
        """
        started, again = asyncio.get_running_loop().time(), self._done == self._steps
        if again and self.process:
            self.process.child.kill()
            await asyncio.to_thread(self.process.child.wait)  # it takes a large one a while to end
            self.process.restart()
            await asyncio.to_thread(self._take_up)
        for number, bank in enumerate(self.banks):
            if isinstance(engine := bank.controller.engine, Remote):
                if again:
                    await engine.revive()
                else:
                    compiled = functools.partial(self._compiled, bank)
                    self._start(number, *await engine.prepare(compiled))
        if self.process:
            self.process.patience = self.config.agent.hang_s
        LOG.info("models ready after %.1f s", asyncio.get_running_loop().time() - started)

    def _take_up(self) -> None:
        """Have the engines take up what the last checkpoint says of them."""
        try:
            if not self.path:
                raise checkpoint.CheckpointError("missing", "agent.checkpoint_path is not set")
            arrays, _ = checkpoint.load(self.path, self.fingerprint())
        except checkpoint.CheckpointError as error:
            LOG.warning("the models begin anew: %s", error)
            return
        for number, bank in enumerate(self.banks):
            bank.controller.engine.load(engine_arrays(under(arrays, f"bank.{number}.")))

    def _compiled(self, bank: Bank, name: str) -> None:
        self._did(f"compiled {name} for {bank.controller.channels} channels")

    def _did(self, what: str) -> None:
        self._done += 1
        self.loop.preparing = f"{what}, {self._done} of {self._steps}"
        self._say(what, self._steps)

    def _start(self, number: int, costs: list[dict[int, float]], learn_cost: float) -> None:
        """Tell a bank's governor what things cost."""
        bank = self.banks[number]
        bank.governor.init(costs, [level.worth for level in bank.controller.levels])
        if self._governors:
            bank.governor.restore(self._governors[number])
        bank.learn_cost = learn_cost
        self._did(f"measured {bank.controller.channels} channels")

    async def run(self) -> None:
        """Run until the sources end or this is cancelled; then save."""
        with processor.first(self.config.agent.realtime):
            await self._run()

    async def _run(self) -> None:
        beside: list[asyncio.Task] = []
        try:
            async with asyncio.TaskGroup() as group:
                beside.append(group.create_task(self.health.run()))
                if self.config.connection:
                    beside.append(group.create_task(self.config.connection.run()))
                if self.path:
                    beside.append(group.create_task(self._save_regularly(self.path)))
                beside.append(group.create_task(self.spending.run(self.loop.ready)))
                await self.loop.run()
                for task in beside:
                    task.cancel()
        finally:
            try:
                if self.path and self.loop.ready.is_set():
                    self._save(self.path, *self.snapshot())
                elif self.path:
                    LOG.warning("no checkpoint: the models were not ready yet")
            except RuntimeError as error:  # the models are gone, or failed
                LOG.error("no checkpoint: %s", error)
            finally:
                self.close()

    async def _save_regularly(self, path: Path) -> None:
        renewed = -inf
        while True:
            await asyncio.sleep(self.config.agent.checkpoint_every_s)
            await self.loop.ready.wait()
            taken = Snapshot(self.banks, self.tracks)
            try:
                await taken.take_beside(self.loop.model, self._busy)
            except RuntimeError as error:  # gone, failed, or begun anew
                LOG.warning("no checkpoint: %s", error)
                if isinstance(error, Lost):
                    self.loop.renew(error)
                continue
            saved = await asyncio.to_thread(self._save, path, taken.arrays, taken.header)
            del taken  # it holds as much as the models
            memory, now = self.spending.memory, asyncio.get_running_loop().time()
            if not (saved and self.loop.ready.is_set()):  # their process is not grown up
                continue
            memory.look(self._processes())
            if memory.high and memory.grown and now - renewed > RENEW:
                LOG.warning("the models are started anew, for the memory that they hold")
                renewed = now
                self.loop.renew()

    def _busy(self) -> bool:
        """Whether a sample waits for its model."""
        return any(bank.backlog or bank.taken for bank in self.banks)

    def _save(self, path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> bool:
        with self._saving:
            try:
                checkpoint.save(path, arrays, header, self.fingerprint())
            except checkpoint.CheckpointError as error:
                LOG.error("no checkpoint: %s", error)
                return False
        return True

    # --- what outlives a restart ----------------------------------------------------------------

    def fingerprint(self) -> str:
        """Of all settings without which a checkpoint means nothing."""
        # In their order: by it the state of each is found again.
        streams = [(name, track.stream.channels) for name, track in self.tracks.items()]
        transforms = [repr(feed.chain) for feed in self.config.feeds]
        model = dataclasses.asdict(self.config.model)
        return checkpoint.fingerprint(
            {"model": model, "streams": streams, "transforms": transforms}
        )

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All state, as named arrays and plain numbers."""
        taken = Snapshot(self.banks, self.tracks)
        taken.take()
        return taken.arrays, taken.header

    def _restore(self, path: Path) -> None:
        try:
            arrays, header = checkpoint.load(path, self.fingerprint())
        except checkpoint.CheckpointError as error:
            if error.reason != "missing":
                raise
            return
        for b, (bank, saved) in enumerate(zip(self.banks, header["banks"], strict=True)):
            bank.controller.restore(under(arrays, f"bank.{b}."), saved["controller"])
            self._governors.append(saved["governor"])
        for t, (name, track) in enumerate(self.tracks.items()):
            saved = header["tracks"][name]
            track.pending.restore(under(arrays, f"track.{t}.pending."))
            track.state = filled(track.state, under(arrays, f"track.{t}.state."))
            track.counters = Counters.restore(saved["counters"])
            track.latency.restore(saved["latency"])
            track.newest = -np.inf if saved["newest"] is None else saved["newest"]
        LOG.info("went on from %s", path)


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those arrays whose names begin so, by what follows."""
    return {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Make what is wrong with a checkpoint a matter of the configuration."""
    try:
        yield
    except checkpoint.CheckpointError as error:
        raise ConfigError(f"agent.checkpoint_path: {error}") from error


def assemble(config: Config, process: Process | None) -> tuple[list[Bank], dict[str, Track]]:
    """Make the banks, one for all streams of so many channels, and a track for each stream."""
    found = [(feed, raw, made) for feed in config.feeds for raw, made in feed.streams()]
    sizes = sorted({len(made.channels) for _, _, made in found})
    banks, tracks = [], {}
    for channels in sizes:
        members = [item for item in found if len(item[2].channels) == channels]
        engine = Remote(process, len(members), channels, config.model) if process else None
        alarms = [feed.alarms for feed, _, _ in members]
        controller = Controller(len(members), channels, config.model, alarms, engine)
        bank = Bank(controller, Governor(config.governor))
        banks.append(bank)
        for number, (feed, raw, made) in enumerate(members):
            tracks[made.name] = Track(
                made,
                bank,
                number,
                feed.deadline,
                feed.chain,
                feed.chain.init(raw),
                Pending(config.model.feedback_samples),
                raw,
                line=Line(feed.rank),
            )
    return banks, tracks
