"""The model of a bank of streams at work: parameters, state and compiled programs, all of JAX.

What moves here is arrays of numbers; what they mean is the controller's. So an engine can stand in
the controller's process, or in one of its own (`adaptive.isolation`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Lowered
from jaxtyping import Float, UInt8

from adaptive import model, programs, runtime
from adaptive.explain import Effects
from adaptive.programs import Programs
from adaptive.settings import BLOCK, Level, Model
from adaptive.store import Layout


class Engine:
    """The model of a bank that has seen nothing."""

    took = None  # as of `isolation.Remote`; here all else waits while it is at work

    def __init__(self, streams: int, channels: int, settings: Model):
        """Make the first parameters and states; compile nothing yet.

        Args:
            streams: How many streams.
            channels: How many channels each has.
            settings: Of the model.
        """
        runtime.prepare()
        s = settings
        self.shape = s.shape(channels)
        params = model.init_params(np.random.default_rng(s.seed), self.shape)
        bank = partial(model.bank, shape=self.shape, streams=streams)
        self.layout = Layout(jax.eval_shape(bank, params))
        objective = s.objective if s.learn_every_samples else None
        self.programs = Programs(self.shape, s.ladder(), streams, self.layout, objective, params)
        self.numbers, self.learned, self.store = self.programs.start(params)
        self._first = jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[0]), self.store)
        self._copies: Any = None  # of all streams, while calls are rehearsed
        self._kept: dict[str, np.ndarray] = {}

    @property
    def params(self) -> model.Params:
        """The parameters, as copies in NumPy."""
        return self.programs.tree(np.array(self.numbers))

    @property
    def bank(self) -> model.State:
        """The states of all streams, as copies in NumPy."""
        store = jax.tree.map(np.asarray, self.store)
        return jax.tree.map(np.array, self.layout.unpack(store))

    def outputs(self) -> dict[str, tuple[int, ...]]:
        """As `programs.outputs`."""
        return programs.outputs(self.shape)

    def warm_up(self, levels: Sequence[int] | None = None, learning: bool = True) -> Iterator[str]:
        """Compile all that will ever run; nothing compiles afterwards.

        Args:
            levels: Which levels; all when None.
            learning: Whether the gradient step, too, if the settings have one.

        Yields:
            The name of each program when it is ready.
        """
        yield from self.programs.compile(self.numbers, self.learned, self.store, levels, learning)
        runtime.settle()

    def compiled(self) -> dict[str, int]:
        """What this process has compiled after the last `warm_up`, by name: nothing should be."""
        return runtime.compiled()

    def take_programs(self, other: "Engine") -> None:
        """Use what another engine of the same shape has compiled.

        Raises:
            ValueError: It is of another shape.
        """
        if other.programs.form != self.programs.form:
            raise ValueError(f"programs are of {other.programs.form}, not {self.programs.form}")
        self.programs = other.programs

    def costs(self) -> list[dict[int, float]]:
        """Measure, on copies, what a call of each level costs [s], by its number of samples."""
        return self.programs.costs(self.numbers, self.store)

    def learn_cost(self) -> float:
        """Measure, on copies, what a gradient step costs [s]; 0 if none are taken."""
        return self.programs.learn_cost(self.numbers, self.learned, self.store)

    def run(
        self, level: int, block: Float[np.ndarray, "rows inputs"]
    ) -> Float[np.ndarray, "samples outputs"]:
        """Take samples through the model.

        Args:
            level: Index in the ladder.
            block: As `programs.run` takes it, one or several of them, one below the other.

        Returns:
            For each sample what `outputs` names, side by side.
        """
        program, packed = self.programs.run[level], []
        for start in range(0, len(block), BLOCK):
            self.store, out = program(self.numbers, self.store, block[start : start + BLOCK])
            packed.append(np.asarray(out))
        rows = packed[0] if len(packed) == 1 else np.concatenate(packed)
        return rows[: np.count_nonzero(block[:, 0] >= 0)]

    def rehearse(
        self, level: int, block: Float[np.ndarray, "rows inputs"]
    ) -> Float[np.ndarray, "samples outputs"]:
        """As `run`, on copies that are kept until `rehearsed`: nothing is learned from it."""
        real = self.store
        self.store = programs.copied(real) if self._copies is None else self._copies
        try:
            return self.run(level, block)
        finally:
            self._copies, self.store = self.store, real

    def rehearsed(self) -> None:
        """Let go of the copies."""
        self._copies = None

    def forget(self, streams: Sequence[int]) -> None:
        """Have streams begin anew; what the bank has learned in common stays."""

        def begun(leaf: Any, first: np.ndarray) -> np.ndarray:
            rows = np.array(leaf)
            rows[list(streams)] = first
            return rows

        self.store = programs.copied(jax.tree.map(begun, self.store, self._first))

    def learn(self, stream: int) -> bool:
        """Take one gradient step on the matured feedback of a stream, or prepare one.

        Returns:
            Whether it landed: it was finite, and the encoder did not go back to its anchor.
        """
        after = self.programs.step(self.numbers, self.learned, self.store, stream)
        self.numbers, self.learned, self.store, report = after
        return bool(np.asarray(report.landed))

    def step(self, level: Level) -> Lowered:
        """One sample's step as it is written, to be counted."""
        state = self.layout.of_stream(self.store, jnp.int32(0))
        x = jnp.zeros(self.shape.channels)
        return jax.jit(partial(model.step, level=level)).lower(self.params, state, x, x)

    def explain(self, stream: int, level: Level) -> Effects:
        """What carried the newest answer of a stream; compiles when it is first asked."""
        if not level.memory_samples:
            raise ValueError(f"level {level.name} has no memory to explain by")
        return self.programs.explain(self.numbers, self.store, stream, level)

    def arrays(self) -> dict[str, np.ndarray]:
        """All state, by name; it does not change."""
        leaves = jax.tree_util.tree_leaves_with_path(self._trees())
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    def keep(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Copy all state, to be handed out by `piece` while the model goes on.

        Returns:
            Of each array its type and shape, by name.
        """
        self._kept = self.arrays()
        return {name: (array.dtype.str, array.shape) for name, array in self._kept.items()}

    def piece(self, name: str, start: int, size: int) -> UInt8[np.ndarray, " bytes"]:
        """Some bytes of an array of the last copy; with its last ones the array goes.

        Args:
            name: Of the array.
            start: Of the first byte.
            size: How many bytes at most.
        """
        content = np.ascontiguousarray(self._kept[name]).reshape(-1).view(np.uint8)
        if start + size >= len(content):
            del self._kept[name]
        return content[start : start + size]

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up the state that `arrays` gave."""
        paths, form = jax.tree_util.tree_flatten_with_path(self._trees())
        leaves = [arrays[jax.tree_util.keystr(path)] for path, _ in paths]
        params, learned, bank = jax.tree.unflatten(form, leaves)
        self.learned, self.store = programs.copied((learned, self.layout.pack(bank)))
        self.numbers = programs.side_by_side(params)

    def _trees(self) -> tuple:
        return self.params, self.learned, self.bank

    async def beside(self, name: str, *args: Any) -> Any:
        """Call a method as one in another process is called; here everything waits for it."""
        return getattr(self, name)(*args)
