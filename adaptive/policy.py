"""What a simulation asks of whoever decides, and what it tells an oracle."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from adaptive.budget import Budget
from adaptive.decision import Decision
from adaptive.demand import Demand, Whom


class Ahead(NamedTuple):
    """What an oracle may look up, at the moment of a decision."""

    takes: Callable[[int, int], float]  # [s] of a call at a level, for so many
    slow: Callable[[], float]  # [nats] of all levels, now
    chill: Callable[[], float]  # [nats] beyond that, of a call made now, for the pause before it
    due: Callable[[int], float]  # [s] when the answer to a sample in the queue is due, by its place


@runtime_checkable
class Policy(Protocol):
    """What decides. `adaptive.governor.Governor` is one."""

    def decide(self, slack: float, queue: int, now: float) -> Decision:
        """Pick level and batch for the head of the queue, which is due in `slack` [s]."""
        ...

    def observe(self, level: int, batch: int, cost: float, now: float) -> None:
        """Learn from what a call cost [s]; `now` is its end."""
        ...

    def failed(self, cause: str, now: float) -> None:
        """Take note that a call gave nothing."""
        ...


@runtime_checkable
class Learning(Protocol):
    """A policy that finds time for gradient steps, as `adaptive.governor.Governor` does."""

    def may_learn(self, slack: float, queue: int, cost: float) -> bool:
        """Say whether a step of such a cost fits [s]."""
        ...

    def step_cost(self, nominal: float, lap: float) -> float:
        """Say what one costs nominally, after one that took so long [s]."""
        ...


@runtime_checkable
class Looking(Protocol):
    """A policy that looks at when all answers are due, as `adaptive.governor.Governor` does."""

    dues: Callable[[], list[float]] | None


@runtime_checkable
class Paying(Protocol):
    """A policy that has budgets, as `adaptive.governor.Governor` may have."""

    budget: Budget | None
    wait: float  # [s] for which nothing is to be run, where it has decided to wait


@runtime_checkable
class Ranking(Protocol):
    """A policy that knows of critical streams and promises, as `governor.Governor` does."""

    def decide_among(
        self, slack: float, queue: int, now: float, demand: Demand
    ) -> tuple[Decision, Whom]:
        """Decide where streams are not equal."""
        ...

    def at_most(self, level: int, batch: int) -> float:
        """Say what a call takes now, almost surely [s]."""
        ...


@runtime_checkable
class Knowing(Protocol):
    """A policy that is told of the world: an oracle."""

    def attach(self, ahead: Ahead) -> None:
        """Get to know it."""
        ...
