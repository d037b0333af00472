"""The compiled programs of a bank: what runs is compiled at the start, and never after."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Compiled
from jaxtyping import Array, Float

from adaptive import analogues, executables, learner, model, ranks, rehearsal, runtime
from adaptive.explain import Effects, effects
from adaptive.settings import BLOCK, EXPERTS, KINDS, Level, Shape, empty_block
from adaptive.store import Layout
from adaptive.surprise import USUAL

# What a call gives of `model.Output`, behind the surprise that is made of the rest.
FIELDS = "forecast", "spread", "lag", "weight", "channel", "expert", "gain", "loss"


def start(params, *, shape, streams, layout):
    """Parameters side by side, learner and streams before the first sample."""
    store = layout.pack(model.bank(params, shape, streams))
    return learner.flat(params), learner.init(params, shape), store


def run(params, store, block, *, levels, number, layout):
    """Take up to `BLOCK` samples of any streams of a bank through the model, in order.

    Inputs and outputs are packed into one array each: every array of a call costs microseconds.

    Args:
        params: Shared parameters.
        store: All streams; donated, and changed in place.
        block: [BLOCK, 1 + 2 channels] float32: the stream, the centred values, and 1 where they
            were measured. After the last sample the stream is -1.
        levels: All, static.
        number: Of the one to compute, static.
        layout: Of the store, static.

    Returns:
        The store, and [BLOCK, outputs]: what `outputs` names, side by side.
    """
    channels, count = (block.shape[1] - 1) // 2, jnp.sum(block[:, 0] >= 0)

    def step(state, row):
        x, seen = row[1 : 1 + channels], row[1 + channels :]
        state, out = model.step(params, state, x, seen, levels[number])
        state, compared = surprise(state, out, levels, number, seen)
        fields = compared, *(getattr(out, name) for name in FIELDS)
        return state, jnp.concatenate([jnp.ravel(a).astype(jnp.float32) for a in fields])

    def one(k, carry):
        store, outputs = carry
        row = block[k]
        stream = row[0].astype(jnp.int32)
        state = layout.of_stream(store, stream)
        # A loop of one: what it carries is taken out of the store once. Else XLA reads the store
        # again for all that needs it, and copies it, with all streams, before it is written.
        state, packed = lax.fori_loop(
            0, jnp.minimum(count, 1), lambda _, carry: step(carry[0], row), (state, outputs[k])
        )
        return layout.with_stream(store, stream, state), outputs.at[k].set(packed)

    state = jax.eval_shape(layout.of_stream, store, jnp.int32(0))
    width = jax.eval_shape(step, state, block[0])[1].shape[0]
    return lax.fori_loop(0, count, one, (store, jnp.zeros((BLOCK, width), jnp.float32)))


def surprise(state, out, levels, number, seen):
    """Compare what a sample's answer finds strange with the earlier ones of its level."""
    parts, distances = out.strange, model.DISTANCES
    if not levels[number].memory_samples:
        # Recall is the better judge by far; the trunk's error stands in where it is off.
        parts, distances = jnp.stack((out.error, out.strange[-1])), 1

    def rank(_, carry):
        return ranks.rank(carry[0], number, parts, distances)

    # Where nothing was measured nothing is strange.
    start = state.ranks, jnp.asarray(USUAL, jnp.float32)
    known, compared = lax.fori_loop(0, jnp.max(seen).astype(jnp.int32), rank, start)
    return state._replace(ranks=known), compared


def outputs(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of what `run` gives of each sample, in their order."""
    channels, horizon = shape.channels, shape.horizon
    shapes = {
        "forecast": (horizon, channels),
        "spread": (horizon, channels),
        "lag": (analogues.SHOWN,),
        "weight": (analogues.SHOWN,),
        "channel": (channels,),
        "expert": (len(EXPERTS),),
        "gain": (2,),
        "loss": (len(KINDS),),
    }
    return {"surprise": (len(USUAL),)} | {name: shapes[name] for name in FIELDS}


def learn(numbers, learned, store, stream, *, tree, shape, objective, layout):
    """Take one gradient step on the feedback of one stream: `learner.step`, on a store.

    Parameters are side by side, as a call of `Programs.run` takes them, too.
    """
    row = layout.of_stream(store, stream)
    params, *rest = learner.step(tree(numbers), learned, row, shape, objective)
    return learner.flat(params), *rest


def gather(numbers, learned, store, stream, *, tree, shape, objective, layout):
    """Keep the gradient of one stream for the next step: `learner.gather`, as `learn`."""
    row = layout.of_stream(store, stream)
    return learner.gather(tree(numbers), learned, row, shape, objective)


def spend(real, stream, *, layout):
    """Forget what a stream has gathered for a step, which is taken; `real` is of a store."""
    nothing = jnp.zeros((1, model.SLOPES))
    return lax.dynamic_update_slice(real, nothing, (stream, layout.start("slope")))


def anew(numbers, store, *, tree, layout):
    """Make anew what is kept of parameters that have moved: `model.anew`, on a store."""
    return layout.pack(model.anew(tree(numbers), layout.unpack(store)))


def side_by_side(params: Any) -> Float[Array, " numbers"]:
    """Parameters in one array, as `learner.flat`; nothing is compiled for it."""
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    return jax.device_put(np.concatenate(leaves), may_alias=False)


def parted(like: Any) -> Callable[[Any], Any]:
    """Make what makes parameters of `side_by_side`; in NumPy of an array of NumPy's."""
    leaves, form = jax.tree.flatten(like)
    ends = np.cumsum([0, *(leaf.size for leaf in leaves)]).tolist()
    parts = [
        (start, end, leaf.shape)
        for leaf, start, end in zip(leaves, ends[:-1], ends[1:], strict=True)
    ]

    def tree(numbers: Any) -> Any:
        each = (numbers[start:end].reshape(shape) for start, end, shape in parts)
        return jax.tree.unflatten(form, each)

    return tree


def copied(tree: Any) -> Any:
    """Arrays that no donation takes; nothing is compiled for it."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), may_alias=False), tree)


def explain(numbers, store, stream, *, tree, layout, level):
    """What carried the newest answer of a stream: `explain.effects`, on a store."""
    return effects(tree(numbers), layout.of_stream(store, stream), level)


class Programs:
    """The programs of a bank: one for each level, and the gradient step."""

    def __init__(
        self,
        shape: Shape,
        levels: Sequence[Level],
        streams: int,
        layout: Layout,
        objective: str | None,
        params: Any,
    ):
        """Compile nothing yet.

        Args:
            shape: Of the model.
            levels: Cheapest first.
            streams: In the bank.
            layout: Of their store.
            objective: Of gradient steps; None if none will be taken.
            params: Any of the model.
        """
        self.shape, self.levels, self.layout = shape, tuple(levels), layout
        self.tree = parted(params)
        self.objective = objective
        self.form = (shape, self.levels, streams, objective)
        self.waits = -(-streams // learner.SHARE) - 1  # gradients that are gathered before a step
        self.run: dict[int, Compiled] = {}
        self.learn: Compiled | None = None
        self.gather: Compiled | None = None
        self.spend: Compiled | None = None
        self.anew: Compiled | None = None

    def compile(
        self, numbers: Any, learned: Any, store: Any, levels: Sequence[int] | None, learning: bool
    ) -> Iterator[str]:
        """Compile, two programs at a time; yield the names of levels, and of learning."""
        levels = range(len(self.levels)) if levels is None else levels
        jobs: dict[int | str, Callable[[], Compiled]] = {}

        def add(name: str, step: Callable[..., Any], args: Any, out: Any, *donated: int) -> None:
            jitted = jax.jit(partial(step, layout=self.layout), donate_argnums=donated)
            jobs[name] = partial(self._kept, name, jitted, args, out)

        for i in levels:

            def program(numbers: Any, *args: Any, number: int = i) -> Any:
                levels, layout = self.levels, self.layout
                return run(self.tree(numbers), *args, levels=levels, number=number, layout=layout)

            jitted = jax.jit(runtime.one_kernel(program), donate_argnums=1)
            args, out = (numbers, store, self.no_block()), (store, 0)
            jobs[i] = partial(self._kept, i, jitted, args, out, runtime.WITHIN_A_KERNEL)
        if self.objective and learning:
            about = {"tree": self.tree, "shape": self.shape, "objective": self.objective}
            args, report = (numbers, learned, store, np.int32(0)), learner.Report._make((0, 0))
            add("spend", spend, (store.real, np.int32(0)), 0, 0)
            if self.shape.encoder == "attention":
                add("anew", partial(anew, tree=self.tree), (numbers, store), store, 1)
            if self.waits:
                add("gather", partial(gather, **about), args, (learned, report))
            add("learn", partial(learn, **about), args, (numbers, learned, report))
        with ThreadPoolExecutor(2) as pool:
            compiled = {name: pool.submit(job) for name, job in jobs.items()}
            for name, future in compiled.items():
                if isinstance(name, str):
                    setattr(self, name, future.result())
                    if name == "learn":  # the last of those that learning takes
                        yield name
                else:
                    self.run[name] = future.result()
                    yield self.levels[name].name
        runtime.give_back()

    def _kept(self, name: int | str, *about: Any) -> Compiled:
        return executables.compiled(sys.modules[__name__], (name, self.form), *about)

    def start(self, params: Any) -> tuple[Any, Any, Any]:
        """As the function `start`."""
        first = partial(start, shape=self.shape, streams=self.form[2], layout=self.layout)
        out = jax.eval_shape(first, params)
        return self._kept("start", jax.jit(first), (params,), out)(params)

    def explain(self, numbers: Any, store: Any, stream: int, level: Level) -> Effects:
        """Explain the newest answer of a stream; compiles when it is first asked."""
        args, out = (numbers, store, np.int32(stream)), Effects._make(Effects._fields)
        jitted = jax.jit(partial(explain, tree=self.tree, layout=self.layout, level=level))
        return self._kept(f"explain {level}", jitted, args, out)(*args)

    def no_block(self) -> np.ndarray:
        """An empty input of `run`."""
        return empty_block(self.shape.channels)

    def costs(self, numbers: Any, store: Any) -> list[dict[int, float]]:
        """Measure what each level costs, on copies, so that nothing is learned from it.

        Returns:
            For each level the usual cost [s] of a call with so many samples.
        """
        store, laps = copied(store), rehearsal.Laps()
        streams, channels = self.form[2], self.shape.channels
        for level, size, block in rehearsal.calls(len(self.levels), streams, channels):
            begin = time.perf_counter()
            for start in range(0, len(block), BLOCK):
                store, out = self.run[level](numbers, store, block[start : start + BLOCK])
                np.asarray(out)
            laps.add(level, size, time.perf_counter() - begin)
        return laps.costs()

    def learn_cost(self, numbers: Any, learned: Any, store: Any, repeats: int = 5) -> float:
        """Measure what a gradient step costs [s], on copies; 0 if none are taken."""
        if self.learn is None:
            return 0.0
        store, laps = copied(store), []
        for _ in range(repeats):
            begin = time.perf_counter()
            *_, store, _ = self.step(numbers, learned, store, 0)
            laps.append(time.perf_counter() - begin)
        return float(np.median(laps))

    def step(
        self, numbers: Any, learned: Any, store: Any, stream: int
    ) -> tuple[Any, Any, Any, learner.Report]:
        """Take a gradient step on the feedback of a stream; the store is donated."""
        if self.learn is None or self.spend is None:
            raise RuntimeError(
                "no gradient step was compiled: warm_up() was not called, or no learning is wanted"
            )
        which = np.int32(stream)
        if self.gather and int(np.asarray(learned.waiting)) < self.waits:
            learned, report = self.gather(numbers, learned, store, which)
        else:
            numbers, learned, report = self.learn(numbers, learned, store, which)
            store = self.anew(numbers, store) if self.anew else store
        store = store._replace(real=self.spend(store.real, which))
        return numbers, learned, store, jax.block_until_ready(report)
