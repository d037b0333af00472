"""What an agent may spend, found and kept up to date: settings, quota, energy, memory.

The meters are read beside everything else; decisions only look at what was read last.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path

from adaptive import energy, quota
from adaptive.bank import Bank
from adaptive.budget import Budget, described
from adaptive.decision import Settings
from adaptive.memory import HIGH, Memory
from adaptive.meters import CpuMeter

LOG = logging.getLogger(__name__)
EVERY = 0.5  # [s] between two readings of energy
SELDOM = 2  # readings between two of the quota and the battery, which change seldom
SHORT = 60.0  # [s] between two log lines that a budget is too small
LASTS = 10  # readings in a row in which something is left out, until it is
HOUR = 3600.0  # [s]
LEAST = 60.0  # [s] for which what a battery has left is made to last at least
ROOT = Path("/")


class Spending:
    """The budgets of an agent."""

    def __init__(
        self,
        settings: Settings,
        banks: Sequence[Bank],
        processes: Callable[[], Iterable[int]] = tuple,
        root: Path = ROOT,
    ):
        """Find what is limited, and tell the governors.

        Args:
            settings: What a user has limited.
            banks: Of which the governors share the budgets.
            processes: Says which processes count besides this one, by their ids.
            root: Below which the files of the kernel are looked for.
        """
        self.settings, self.banks, self.root = settings, banks, root
        self.budget = Budget(CpuMeter(processes), settings.watts_per_core)
        self.processes, self.memory = processes, Memory(1e6 * settings.memory_mb or inf, root)
        self.rapl = energy.Rapl(root)
        self.quota: quota.Quota | None = None
        self.battery: energy.Battery | None = None
        self._unplugged = self._measured = -inf  # [s]
        self._left_out = self._short = 0  # samples, readings
        self._said = self._told = -inf  # [s] that a budget is too small, and that memory is
        if settings.cpu_share:
            self.budget.limit("cpu", settings.cpu_share)
        if settings.power_w:
            self.budget.limit("energy", settings.power_w)
        if settings.battery_hours and not energy.battery(root):
            LOG.warning(
                "governor.battery_hours: wanted a battery that says what energy it has left, got "
                "none below /sys/class/power_supply; nothing is saved for it"
            )
        self._tell(quota.find(root))

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Read the meters until cancelled.

        Args:
            ready: The models are made; what that takes is of no budget. None: they are.
        """
        if ready:
            await ready.wait()
        clock, turn = asyncio.get_running_loop().time, 0
        self._left_out = sum(bank.left_out for bank in self.banks)
        while True:
            found, left = self.quota, self.battery
            if turn % SELDOM == 0:
                found = quota.find(self.root)
                if self.settings.battery_hours:  # some take a while to say what they have left
                    left = await asyncio.to_thread(energy.battery, self.root)
            if ready and not ready.is_set():  # the models are made anew
                self.budget.leave_out(clock())
            self.take(clock(), self.rapl.joules(), found, left)
            if turn % SELDOM == 0 and (not ready or ready.is_set()):  # their process is grown up
                self.remember(clock())
            turn += 1
            await asyncio.sleep(EVERY)

    def take(
        self,
        now: float,
        joules: float | None,
        found: quota.Quota | None,
        left: energy.Battery | None,
    ) -> None:
        """Take up what was read.

        Args:
            now: [s].
            joules: What the processors have taken since the last time [J].
            found: The quota.
            left: What the battery has left.
        """
        self._tell(found)
        self._last(left, now)
        if self.budget:
            self.budget.look(now)
        elapsed, self._measured = now - self._measured, now
        if elapsed < inf:
            if left and left.draining and left.power is not None:
                self.budget.measured(left.power * elapsed)  # of the whole machine
            elif joules is not None:
                self.budget.measured(joules)
        before, self._left_out = self._left_out, sum(bank.left_out for bank in self.banks)
        is_short = self.budget.price > 0.0 and self._left_out > before
        self._short = self._short + 1 if is_short else 0
        if self._short >= LASTS and now - self._said > SHORT:
            self._said = now
            LOG.warning(
                "the budget (%s) is too small: for %.0f s samples have been left out of the "
                "model's memory, and have mandatory answers, %d in the last %.1f s. Allow more, "
                "or send less",
                described(self.budget),
                EVERY * self._short,
                self._left_out - before,
                EVERY,
            )

    def remember(self, now: float) -> None:
        """Look at what is held.

        Args:
            now: [s].
        """
        memory = self.memory
        memory.look(self.processes())
        if memory.high and now - self._told > HOUR:
            self._told = now
            LOG.warning(
                "the agent holds %.0f MB, more than %.0f %% of the %.0f that it may. %s",
                1e-6 * memory.held,
                100 * HIGH,
                1e-6 * memory.allowed,
                "Its models are started anew at the next checkpoint, if there is one."
                if memory.grown
                else "Allow more, or have fewer streams or smaller memories (model.levels).",
            )

    def _tell(self, found: quota.Quota | None) -> None:
        """Take up a quota, and tell the governors whether anything is limited."""
        if found != self.quota:
            share = f"{found.share:.2f} of a core" if found else "none any more"
            LOG.info("CPU quota of the control group: %s", share)
        self.quota = found
        self.budget.stop_at(*(found or (inf, 1.0)))
        for bank in self.banks:
            bank.governor.budget = self.budget if self.budget else None

    def _last(self, left: energy.Battery | None, now: float) -> None:
        """Make what the battery has left last until it is to be charged again."""
        self.battery = left
        if not self.settings.battery_hours:
            return
        allowed = self.settings.power_w or inf
        if left and left.draining and left.left > 0.0:
            if self._unplugged == -inf:
                self._unplugged = now
            rest = HOUR * self.settings.battery_hours - (now - self._unplugged)
            allowed = min(allowed, left.left / max(rest, LEAST))
        else:
            self._unplugged = -inf
        self.budget.limit("energy", allowed)
        for bank in self.banks:
            bank.governor.budget = self.budget if self.budget else None
