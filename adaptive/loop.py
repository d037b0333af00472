"""The async loop: ingest, decide, score, publish, learn.

Each source has a task that takes samples in and gives them their mandatory answer at once; one
task has them refined and learns, one publishes, and each sink has one that writes. The model runs
in a process of its own, so nothing else waits for it: what is not refined shortly before its
deadline is published as it is, by a timer, and until it has been made every answer is mandatory. A
sample is counted when it comes in and when every sink has taken its answer, so that

    received = full + mandatory + shed + in flight

holds at any moment, and a source may acknowledge a sample exactly when it has been answered.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any

from adaptive.backlog import QUEUE, QUEUE_LEAST
from adaptive.bank import Bank, Origin, Track, Waiting
from adaptive.controller import MANDATORY
from adaptive.decision import Decision
from adaptive.demand import CRITICAL, EVERYONE, PRESSED, Needs, Whom
from adaptive.inbox import Inbox
from adaptive.outlet import RETRY_CAP, Outlet, pause
from adaptive.publisher import Publisher
from adaptive.sinks import Sink
from sensors.sample import Sample, Source

LOG = logging.getLogger(__name__)
# Of the time to the deadline, left for publishing: at least, at most. Timers are late, most on a
# crowded machine, and what is due at one moment goes out one by one: both are measured.
SPARE, SPARE_LEAST, SPARE_MOST = 0.1, 2e-3, 0.6
LAG, FORGET = 2.0, 0.99  # times the latest timer; how much is left with the next
FORGIVE = 0.999  # how much of it is left with each sample that sets no timer


class Loop:
    """Runs until the sources end, or until it is cancelled."""

    def __init__(
        self,
        sources: Sequence[Source],
        tracks: dict[str, Track],
        banks: Sequence[Bank],
        sinks: Sequence[Sink] = (),
        rng: random.Random | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ):
        """Put together what `adaptive.config` made.

        Args:
            sources: Where samples come from.
            tracks: By the name of the stream; every stream of every source is there.
            banks: Of which the models are ready and the governors know the costs after `prepare`.
            sinks: Where results go.
            rng: Draws the waits between attempts.
            prepare: Gets the banks ready; None if they are.
        """
        self.sources, self.tracks, self.banks = sources, tracks, banks
        self._rng = rng or random.Random()
        self.outlets = [Outlet(sink, self._rng) for sink in sinks]
        self.publisher = Publisher(self.outlets)
        self.inbox = Inbox(tracks, self._queue, self._rng)
        self._members = {(id(t.bank), t.number): t for t in tracks.values()}
        self._shortest = min((track.deadline for track in tracks.values()), default=inf)
        ranked = [track for track in tracks.values() if track.line.rank.special]
        self._special = min((track.deadline for track in ranked), default=inf)
        top = max((len(bank.controller.levels) for bank in banks), default=1) - 1
        relief = min((bank.governor.settings.recover_ms for bank in banks), default=0.0)
        promised = sum(track.line.rank.firm[0] > 0 for track in ranked)
        critical = sum(track.line.rank.critical for track in ranked)
        self._needs = Needs(top, 1e-3 * relief, critical, promised)
        self._wake = asyncio.Event()
        self._reading = 0
        self.model = asyncio.Lock()  # held while a model is at work
        self.prepare, self.ready = prepare, asyncio.Event()
        self.preparing = ""  # what was done last
        self._since = -inf  # [s] when the models were ready
        self._broken = asyncio.Event()  # their process is gone, or gives no answers
        if not prepare:
            self.ready.set()
        self._timer: asyncio.TimerHandle | None = None  # of the next sample whose time is up
        self._lag = 0.0  # [s] after they are due that answers may be out, by such timers

    async def run(self) -> None:
        """Run; on return all samples are answered, and all answers are with the sinks.

        Raises:
            ExceptionGroup: Something failed that is not an absence of the far side: a bug, or a
                configuration that the far side refuses.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for outlet in self.outlets:
                    group.create_task(outlet.run())
                self._reading = len(self.sources)
                for source in self.sources:
                    group.create_task(self._ingest(source))
                beside = [group.create_task(self._keep_ready())]
                beside.append(group.create_task(self.publisher.run()))
                await self._score()
                for task in beside:
                    task.cancel()
                self.publisher.flush()
                for outlet in self.outlets:
                    outlet.end()
        finally:
            self._finish()
            for outlet in self.outlets:
                await outlet.close()

    async def _keep_ready(self) -> None:
        """Have the models made, and anew when they break; until then every answer is mandatory."""
        clock, failures = asyncio.get_running_loop().time, 0
        while self.prepare:
            try:
                async with self.model:
                    await self.prepare()
            except (RuntimeError, OSError) as error:
                if self._since == -inf:  # at the first start somebody looks on
                    raise
                LOG.error("the models cannot be had back yet: %s", error)
                failures += 1
            else:
                self._since = clock()
                self._broken.clear()  # whatever was wrong with those of before
                self.ready.set()
                self._wake.set()
                await self._broken.wait()
                failures = failures + 1 if clock() - self._since < RETRY_CAP else 0
            if failures:
                await asyncio.sleep(pause(failures, self._rng))

    def _break(self, error: RuntimeError, now: float) -> None:
        """Answer what waits without the models, and have them made anew.

        Raises:
            RuntimeError: They are in this process, which cannot be.
        """
        if not self.prepare:
            raise error
        LOG.error("%s. Until the models are back, answers are mandatory.", error)
        self._do_without(now)
        for bank in self.banks:
            bank.governor.failed("worker", now)
            bank.taken = []
            self._look(bank, now)

    def renew(self, error: RuntimeError | None = None) -> None:
        """Have the models made anew, for they are gone, or though nothing is wrong with them."""
        if self.prepare and self.ready.is_set():
            now = asyncio.get_running_loop().time()
            self._break(error, now) if error else self._do_without(now)

    def _do_without(self, now: float) -> None:
        """Answer what waits without the models, until they have been made anew."""
        self.ready.clear()
        for bank in self.banks:
            bank.controller.unsound.clear()  # what they are made of was sound
            for waiting in (*bank.taken, *bank.backlog):
                self.publisher.simple(waiting, now, "unready")
        self._broken.set()

    # --- in -------------------------------------------------------------------------------------

    async def _ingest(self, source: Source) -> None:
        """Take in what a source gives, until it ends."""
        if getattr(source, "waits", False):
            await self.ready.wait()
        await self.inbox.ingest(source)
        self._reading -= 1
        self._wake.set()

    def _queue(self, track: Track, sample: Sample, origin: Origin, now: float) -> None:
        bank = track.bank
        track.rate.add(now)
        queued = bank.controller.arrive(track.number, sample.values, sample.filled)
        deadline, due = now + track.deadline, now + self._patience(track.deadline)
        waiting = Waiting(track, sample, origin, now, deadline, due, queued)
        bank.backlog.add(waiting)
        ready, line = self.ready.is_set(), track.line
        if not (ready and line.hopeful()):  # to wait would be in vain, and makes answers late
            self.publisher.simple_all(track, now, "behind" if ready else "unready")
            self._lag *= FORGIVE  # no timer is set that could show that things are better now
        elif not self._timer or due < self._timer.when():
            self._watch()
        self._wake.set()
        most = max(QUEUE // bank.controller.streams, QUEUE_LEAST)
        # With the model at work it cannot keep up: to go on from now is better than to lag on.
        drop = len(line.queue) - 1 if ready and len(line.queue) > 2 * most else 0
        for _ in range(drop or (not ready and len(line.queue) > most)):
            self._leave_out(bank, bank.backlog.drop(line), now, "behind")

    # --- score ----------------------------------------------------------------------------------

    async def _score(self) -> None:
        """Answer what waits, earliest deadline first, until nothing more will come."""
        while True:
            banks = [bank for bank in self.banks if bank.backlog and self.ready.is_set()]
            if track := self._learning():
                await self._learn(track)
            elif banks:
                await self._step(min(banks, key=Bank.urgency))
            elif self._reading:
                self._wake.clear()
                await self._wake.wait()
            else:
                return

    async def _step(self, bank: Bank) -> None:
        """Take the front of a bank's queue through the model."""
        clock = asyncio.get_running_loop().time
        if bank.controller.unsound:
            return await self._forget(bank, clock())
        before, backlog, due = clock(), bank.backlog, bank.urgency()
        (level, batch, sure, after), whom = self._decide(bank, before)
        after += bank.beyond - 1e-9  # that it was subtracted must not round anybody away
        while (head := backlog.head()) and head.due < after:  # these cannot be had in time
            self.publisher.simple(head, before, "no_room")
        wanted = level if due < inf else MANDATORY  # for no answer, but for the model's memory
        if level < MANDATORY:  # a budget is short: some are left out, or all wait
            for waiting in backlog.take(batch, whom, short=True):
                self._leave_out(bank, waiting, before, "budget")
            return await asyncio.sleep(bank.governor.wait)
        if level == MANDATORY:
            # What its time allows is there already; the model sees the sample all the same.
            if whom == EVERYONE and head:
                self.publisher.simple(head, before, "no_room")
            level = 0
        if due == inf:
            level = 0  # whatever level it is, the memory is the same
        bank.taken = backlog.take(batch, whom, short=level == 0, after=after)
        call = bank.controller.take(level, [waiting.queued for waiting in bank.taken])
        expected, _ = bank.governor.predict(level, len(bank.taken))
        try:
            packed = await self._beside(bank, "run", call.level, call.block)
        except RuntimeError as error:
            return self._break(error, clock())
        done = clock()
        engine, lap = bank.controller.engine, done - before
        bank.calls.add(wanted, sure, due - before, expected + bank.beyond, lap)
        cost = bank.took(lap, lap if engine.took is None else engine.took)
        bank.governor.observe(level, len(bank.taken), cost, done)
        self._look(bank, done)
        for waiting in bank.taken:
            if waiting.arrival >= self._since:  # nobody hoped for those before
                waiting.line.estimated(done <= waiting.due)
        self.publisher.land(bank, call, packed)
        if engine.took is None:  # nobody else had a turn
            self.publisher.flush()
            await asyncio.sleep(0)

    async def _forget(self, bank: Bank, now: float) -> None:
        """Have streams begin anew of which the model gave something that is no number."""
        self.publisher.flush()  # all that the model has given so far
        streams = sorted(bank.controller.unsound)
        bank.controller.unsound.clear()
        names = ", ".join(self._members[id(bank), stream].stream.name for stream in streams)
        LOG.error("%s: the model gave something that is no number, and begins anew", names)
        if bank.governor.cause != "unsound":  # several at about the same time are one failure
            bank.governor.failed("unsound", now)
            self._look(bank, now)
        try:
            await self._beside(bank, "forget", streams)
        except RuntimeError as error:
            self._break(error, now)

    def _look(self, bank: Bank, now: float) -> None:
        """Take note if the governor's mode has changed."""
        mode, cause = bank.governor.mode, bank.governor.cause
        if mode == bank.mode:
            return
        LOG.warning("governor: %s -> %s (%s)", bank.mode.name, mode.name, cause or "recovered")
        bank.mode = mode
        bank.changes.append((now, mode, cause))

    def _decide(self, bank: Bank, now: float) -> tuple[Decision, Whom]:
        """Have a bank's governor decide for what waits."""
        backlog, governor, sooner = bank.backlog, bank.governor, now + bank.beyond
        head = backlog.head()
        # A sample of another stream may come during the call and have to wait for its end.
        usable = self._patience(self._shortest) - bank.beyond
        slack = min(head.due - sooner if head else inf, usable)
        if self._special == inf:
            return governor.decide(slack, len(backlog), now), EVERYONE
        critical = backlog.group(CRITICAL, sooner)
        pressed = backlog.group(PRESSED, sooner + bank.beyond * (critical.size > 0))  # the second
        patience = self._patience(self._special) - 2 * bank.beyond
        demand = self._needs.demand(critical, pressed, patience, governor.at_most, now)
        decision, whom = governor.decide_among(slack, len(backlog), now, demand)
        self._needs.decided(demand, decision.level, now)
        return decision, whom

    async def _beside(self, bank: Bank, name: str, *args: Any) -> Any:
        """Have a bank's engine do something while everything else goes on."""
        async with self.model:
            return await bank.controller.engine.beside(name, *args)

    def _patience(self, deadline: float) -> float:
        """How long a sample may wait for the model, of the time to its deadline [s]."""
        spare = max(SPARE * deadline, SPARE_LEAST, self._lag)
        return deadline - min(spare, SPARE_MOST * deadline)

    def _watch(self) -> None:
        """Set the timer to the next sample whose time will be up."""
        due = min((bank.urgency() for bank in self.banks), default=inf)
        if self._timer and (due < self._timer.when() or self._timer.cancelled()):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due < inf:
            self._timer = asyncio.get_running_loop().call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        """Publish what there is for every sample that cannot wait longer."""
        clock = asyncio.get_running_loop().time
        now = clock()
        late = now - self._timer.when() if self._timer else 0.0
        for bank in self.banks:
            while (head := bank.backlog.head()) and head.due <= now:
                self.publisher.simple(head, now, "longer" if head.line.taken else "waited")
        if self._timer:
            self._lag = max(FORGET * self._lag, LAG * late + clock() - now)
            self._timer = None
        self._watch()

    def _leave_out(self, bank: Bank, waiting: Waiting, now: float, why: str) -> None:
        """Answer a sample that the model will not see."""
        self.publisher.simple_all(waiting.track, now, why, waiting)
        waiting.track.counters.left_out += 1
        bank.left_out += 1

    def _learning(self) -> Track | None:
        """The stream that a gradient step is due for, if there is time.

        There is, if what comes during the step can still be refined in time. Where something waits
        at any moment, as with many streams, time is made for steps that are overdue.
        """
        now = asyncio.get_running_loop().time()
        waiting = [bank for bank in self.banks if bank.backlog]
        for bank in self.banks if self.ready.is_set() else ():
            stream = bank.controller.learning_due(overdue=bool(waiting))
            if stream is None:
                continue
            slack = self._patience(self._shortest) - bank.beyond
            for other in waiting:
                head, queue = other.backlog.head(), len(other.backlog)
                slack = min(slack, (head.due if head else -inf) - now - other.beyond)
                if other is not bank:  # its call comes before or after
                    top = len(other.controller.levels) - 1
                    slack -= other.governor.at_most(top, queue) + other.beyond
            if bank.governor.may_learn(slack, len(bank.backlog), bank.learn_cost):
                return self._members[id(bank), stream]
        return None

    async def _learn(self, track: Track) -> None:
        clock = asyncio.get_running_loop().time
        bank, before = track.bank, clock()
        bank.controller.step_begins(track.number)
        try:
            landed = await self._beside(bank, "learn", track.number)
        except RuntimeError as error:
            return self._break(error, clock())
        bank.learn_cost = bank.governor.step_cost(bank.learn_cost, clock() - before)
        track.counters.learn_steps += bool(landed)
        track.counters.learn_rejected += not landed

    # --- the account ----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Count what is left at the end: nothing is lost without a reason."""
        try:
            self.publisher.flush()  # the model has seen it
        finally:
            self.publisher.give_up()
        for bank in self.banks:
            for waiting in (*bank.taken, *bank.backlog):
                if not waiting.answered:
                    waiting.answered = True
                    waiting.give_up("stopped")
        for outlet in self.outlets:
            outlet.give_up()

    def check(self) -> None:
        """Hold the counted identity against what is really on its way.

        Raises:
            AssertionError: A sample was lost or counted twice.
        """
        held: dict[str, int] = dict.fromkeys(self.tracks, 0)
        queued = {w for b in self.banks for w in (*b.taken, *b.backlog) if not w.answered}
        unsent = {w for outlet in self.outlets for w, _ in outlet.outbox if w.sinks > 0}
        for waiting in queued | unsent | set(self.publisher.pending()):
            held[waiting.track.stream.name] += 1
        for name, track in self.tracks.items():
            track.counters.check(held[name])
