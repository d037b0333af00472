"""`adaptive bench governor --simulate`: the governor against others, in worlds that are the same.

Every policy lives through every scenario at every site, with as many seeds as are asked for. Two
oracles say what could have been had: one knows how slow the machine is and how calls scatter, the
other what each call would take. A policy's share of what lies between always taking the cheapest
level and an oracle is its gap closed.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from adaptive.budget import Budget
from adaptive.decision import Decision
from adaptive.demand import EVERYONE, Demand, Whom
from adaptive.governor import Governor
from adaptive.ladder import WORTH_MANDATORY
from adaptive.policies import (
    Alert,
    Bounded,
    Distribution,
    Expecting,
    Margin,
    Oracle,
    Pid,
    Quantile,
    Static,
)
from adaptive.policy import Policy
from adaptive.scenarios import SCENARIOS, SITES, World, world
from adaptive.settings import LADDER
from adaptive.simulation import Outcome, Profile, simulate
from adaptive.slowdown import CORRECTION, UNSEEN, Tail

# What the work of calls costs, for a bank of 512 streams of one channel on two cores [us], from the
# cheapest level to the full one, and what a gradient step takes.
PROFILE = Profile(
    (1, 2, 4, 8, 16, 32, 64, 128),
    tuple(
        tuple(1e-6 * cost for cost in row)
        for row in (
            (195, 223, 251, 325, 478, 750, 1450, 2740),
            (241, 278, 355, 510, 770, 1285, 2420, 4660),
            (255, 308, 408, 610, 1020, 1595, 3050, 5900),
        )
    ),
    0.46e-3,
)
QUALITY = WORTH_MANDATORY, *(level.worth for level in LADDER)  # and of the levels
MISS = 1e-3  # share of late answers that is accepted
OURS, SMALL, MYOPIC, DIST = "governor", "static, smallest", "oracle: calls", "oracle: law"
LENGTHS = np.geomspace(1e-4, 1.0, 41)  # [s] of calls
YARDSTICKS = OURS, SMALL, DIST, MYOPIC  # what a judgement of the governor needs


class Without(Governor):
    """The governor without one of its parts."""

    def __init__(self, part: str):
        """Take the part out.

        Args:
            part: One of `PARTS`.
        """
        super().__init__()
        self.part = part

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """Decide, and try nothing if that is the part, or do not look at what else waits."""
        if self.part == "choice of what can be had":
            self.dues = None
        found = super().decide(slack, queue, now)
        if self.part == "tries" and not found.sure and found.level >= 0:
            self.state = self.state._replace(level=-1)
            return Decision(-1, queue, sure=False)
        return found

    def decide_among(
        self, slack: float, queue: int, now: float, demand: Demand
    ) -> tuple[Decision, Whom]:
        """Decide as if all were equal, if that is the part."""
        if self.part == "ranks":
            return self.decide(slack, queue, now), EVERYONE
        return super().decide_among(slack, queue, now, demand)

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """Learn, and forget what the part has learned."""
        super().observe(level, batch, cost, now)
        state, part = self.state, self.part
        slowdown, tail = state.slowdown, state.tail
        if part == "conformal correction":
            tail = tail._replace(correction=CORRECTION)
        elif part == "largest residual seen":
            tail = tail._replace(before=UNSEEN)
        elif part == "tail":
            tail = Tail()._replace(correction=tail.correction)
        elif part == "hold of a spike":
            slowdown = slowdown._replace(hold_left=0)
        self.state = state._replace(slowdown=slowdown, tail=tail)


PARTS = (
    "conformal correction",
    "tail",
    "largest residual seen",
    "hold of a spike",
    "tries",
    "choice of what can be had",
    "ranks",
)


def quantiles(noise: np.ndarray, stalls: np.ndarray) -> list[float]:
    """How long calls of `LENGTHS` almost surely take with these [nats], [s]; in [s]."""
    factor = np.exp(noise)
    return [float(np.quantile(length * factor + stalls, 1 - MISS)) for length in LENGTHS]


def policies(given: World) -> dict[str, Callable[[], Policy]]:
    """What is compared, by name; each is told the costs as they were measured at the site."""
    slower = given.slower
    costs = PROFILE.measured(slower)

    def budget() -> Budget | None:
        made = Budget(lambda: 0.0)
        for _, share in given.budgets[:1]:
            made.limit("cpu", share)
        if given.quota:
            made.stop_at(*given.quota)
        return made if made else None

    def governor(part: str = "") -> Governor:
        made = Without(part) if part else Governor()
        made.init(costs, QUALITY[1:])
        made.budget = budget()
        return made

    scatter = [
        partial(np.interp, xp=LENGTHS, fp=quantiles(noise, stalls))
        for noise, stalls in zip(given.noise.T, given.stalls.T, strict=True)
    ]
    top = len(PROFILE.costs) - 1
    others: dict[str, Callable[[], Policy]] = {
        OURS: governor,
        SMALL: lambda: Static(PROFILE, slower),
        "static, largest": lambda: Static(PROFILE, slower, top),
        "ALERT": lambda: Alert(PROFILE, slower, QUALITY),
        "ALERT, rarely late": lambda: Alert(PROFILE, slower, QUALITY, MISS),
        "LiteReconfig": lambda: Margin(PROFILE, slower),
        "99 % of each level": lambda: Quantile(PROFILE, slower),
        "AIMD": lambda: Bounded(PROFILE, slower),
        "PID": lambda: Pid(PROFILE, slower),
        "SlackFit": lambda: Expecting(PROFILE, slower),
        DIST: lambda: Distribution(PROFILE, slower, budget(), QUALITY, scatter),
        MYOPIC: lambda: Oracle(PROFILE, slower, budget(), QUALITY),
    }
    return others | {f"without {part}": partial(governor, part) for part in PARTS}


class Job(NamedTuple):
    """One world."""

    scenario: str
    site: int
    seed: int
    samples: int
    names: tuple[str, ...]  # of policies; none for all
    held_out: bool = False  # by the recordings for final figures


def live(job: Job) -> dict[str, Outcome]:
    """Let the policies live through a world."""
    about = job.scenario, SITES[job.site], len(PROFILE.costs), job.samples, job.seed
    given = world(*about, job.held_out)
    made = policies(given)
    return {name: simulate(given, PROFILE, made[name]()) for name in job.names or made}


def outcomes(
    seeds: int,
    samples: int,
    names: Sequence[str] = (),
    workers: int = 1,
    held_out: bool = False,
    scenarios: Sequence[str] = (),
) -> Iterator[tuple[Job, dict[str, Outcome]]]:
    """Live through scenarios at all sites.

    Args:
        seeds: How many, from 0 on.
        samples: Of each world.
        names: Of policies; none for all.
        workers: Processes.
        held_out: By the recordings for final figures, where a world is made of recordings.
        scenarios: Of `SCENARIOS`; none for all.

    Raises:
        ValueError: There is no such scenario.
    """
    if unknown := set(scenarios) - set(SCENARIOS):
        told = "; ".join(SCENARIOS), "; ".join(sorted(unknown))
        raise ValueError("--cases: wanted some of {}; got {}".format(*told))
    jobs = [
        Job(scenario, site, seed, samples, tuple(names), held_out)
        for scenario in scenarios or SCENARIOS
        for site in range(len(SITES))
        for seed in range(seeds)
    ]
    if workers == 1:
        yield from zip(jobs, map(live, jobs), strict=True)
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from zip(jobs, pool.map(live, jobs), strict=True)


class Judged(NamedTuple):
    """How a policy did, in the mean over worlds."""

    quality: float  # of the oracle's that knows each call
    attainable: float  # the same of the oracle that knows the law
    by_law: float  # gap closed to the oracle that knows the law; NaN where there is none
    by_call: float  # gap closed to the oracle that knows each call
    late: float  # share of answers that were late, of calls that were to be in time
    tried: float  # the same of all calls, also those that were only tried
    missed: float  # share of all answers that came after their deadline
    unmissed: float  # the same of the oracle that knows each call
    load: float  # of the time that there is, what the highest level would take for all samples
    learned: float  # share of the gradient steps that were due
    spent: float  # share of what budgets allow; NaN where there is none
    skipped: float  # share of the samples left out of the model's memory


def judge(found: Sequence[dict[str, Outcome]], name: str) -> Judged:
    """Judge a policy by what became of worlds that it and the oracles lived through."""

    def worth(one: str) -> float:
        return float(np.mean([each[one].quality(QUALITY[0], QUALITY[1:]) for each in found]))

    def share(of: str, field: str, whole: str) -> float:
        total = sum(getattr(each[of], whole) for each in found)
        return sum(getattr(each[of], field) for each in found) / max(total, 1)

    mine, small, law, call = (worth(one) for one in (name, SMALL, DIST, MYOPIC))

    def closed(oracle: float) -> float:
        return (mine - small) / (oracle - small) if oracle - small > 1e-3 else np.nan

    late, tried = (sum(getattr(each[name], k) for each in found) for k in ("late", "tried"))
    meant = late + sum(sum(each[name].refined) for each in found)
    missed, unmissed = (share(one, "missed", "samples") for one in (name, MYOPIC))
    return Judged(
        mine / call,
        law / call,
        closed(law),
        closed(call),
        late / max(meant, 1),
        (late + tried) / max(meant + tried, 1),
        missed,
        unmissed,
        float(np.mean([each[name].load for each in found])),
        share(name, "learned", "owed"),
        share(name, "spent", "granted") if all(each[name].granted for each in found) else np.nan,
        share(name, "skipped", "samples"),
    )


COLUMNS = (
    *("quality", "law's", "by law", "by call", "late %", "tried", "missed", "oracle"),
    *("load", "learned", "spent"),
)
ATTAINED = 0.97  # quality of the oracle that knows the law, where more may be asked for
FREE, MOST_STEPS = 0.6, 0.9  # below such a load there is time for so many gradient steps
RANKS = "ranks"  # of scenarios, the one whose streams are not equal


def row(judged: Judged) -> list[str]:
    """The cells of a judgement."""
    shares = [f"{one:.3f}" for one in judged[:4]]
    shares += [f"{100 * one:.3f}" for one in (judged.late, judged.tried)]
    missed = [f"{100 * one:.2f}" for one in (judged.missed, judged.unmissed)]
    spent = "-" if np.isnan(judged.spent) else f"{100 * judged.spent:.1f}"
    work = [f"{100 * one:.0f} %" for one in (judged.load, judged.learned)]
    return [*shares, *missed, *work, spent]


def tables(found: Sequence[tuple[Job, dict[str, Outcome]]]) -> Iterator[Table]:
    """The governor by scenario, and all policies over all of them."""
    about = (
        "quality, to the oracle's that knows each call, and that of the one that knows the law; "
        "gap closed to this one, and to that one; refined answers late, of calls that were to be "
        "in time, and of all [%]; answers missed, and by the oracle that knows each call [%]; the "
        "load, if all were at the highest level; gradient steps of those due; what was spent of a "
        "budget [%]"
    )
    judged = by_scenario(found)
    yield table(f"the governor, by scenario and site: {about}", judged, summary(judged))
    names = [name for name in found[0][1] if name not in (MYOPIC, DIST)]
    equal = [each for job, each in found if job.scenario != RANKS]
    yield table("policies, over all", {name: judge(equal, name) for name in names})
    if among := [each for job, each in found if job.scenario == RANKS]:
        yield ranked(among, [*names, MYOPIC])
    if after := [each for _, each in found if each[MYOPIC].followed]:
        yield stepped(after, [*names, MYOPIC])


def ranked(found: Sequence[dict[str, Outcome]], names: Sequence[str]) -> Table:
    """What became of critical streams and of promises."""
    about = "critical answers at the highest level [%]; promises broken, of a thousand answers"
    made = Table(title=f"{RANKS}: {about}", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "critical", "broken", "quality"):
        made.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for name in names:
        outcomes = [each[name] for each in found]
        critical, best, broken, samples = (
            sum(getattr(one, k) for one in outcomes)
            for k in ("critical", "best", "broken", "samples")
        )
        worth = np.mean([one.quality(QUALITY[0], QUALITY[1:]) for one in outcomes])
        shares = f"{100 * best / max(critical, 1):.1f}", f"{1e3 * broken / max(samples, 1):.2f}"
        made.add_row(name, *shares, f"{worth:.3f}")
    return made


def stepped(found: Sequence[dict[str, Outcome]], names: Sequence[str]) -> Table:
    """How all steps were followed."""
    about = (
        "after a step, mean and most: calls late within half a second; calls until the level is "
        "right; after its end, milliseconds until it is as before"
    )
    made = Table(title=about, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "late", "", "until right", "", "until back", ""):
        made.add_column(name, justify="right" if made.columns else "left", no_wrap=True)
    for name in names:
        steps = np.array([one for each in found for one in each[name].followed])
        cells = []
        for column, scale, digits in zip(steps.T, (1, 1, 1e3), (2, 1, 0), strict=True):
            cells += [f"{scale * column.mean():.{digits}f}", f"{scale * column.max():.0f}"]
        made.add_row(name, *cells)
    return made


def by_scenario(found: Sequence[tuple[Job, dict[str, Outcome]]]) -> dict[str, Judged]:
    """The governor's judgement in each scenario at each site."""
    groups: dict[str, list[dict[str, Outcome]]] = {}
    for job, each in found:
        groups.setdefault(f"{job.scenario}, {SITES[job.site].name}", []).append(each)
    return {name: judge(some, OURS) for name, some in groups.items()}


def summary(judged: dict[str, Judged]) -> str:
    """Say how it did where much could be had."""
    quality = {k: v.quality for k, v in judged.items() if v.attainable >= ATTAINED}
    learned = [v.learned for v in judged.values() if v.load < FREE]
    many = sum(share >= MOST_STEPS for share in learned)
    told = (
        f"at a load below {FREE:.0%}: {MOST_STEPS:.0%} or more of the steps in {many} of "
        f"{len(learned)}; where the oracle that knows the law has {ATTAINED} or more, in "
        f"{len(quality)} of {len(judged)}"
    )
    if not quality:
        return told
    worst = min(quality, key=lambda k: quality[k])
    mean = np.mean([*quality.values()])
    return f"{told}: quality {mean:.3f} in the mean, at least {quality[worst]:.3f} ({worst})"


def table(title: str, judged: dict[str, Judged], caption: str = "") -> Table:
    """Lay judgements out."""
    made = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    made.caption, made.caption_justify = caption, "left"
    for name in ("", *COLUMNS):
        made.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for name, one in judged.items():
        made.add_row(name, *row(one))
    return made
