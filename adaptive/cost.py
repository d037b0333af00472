"""`adaptive cost`: what each level takes and what it is good for, on one recording."""

from collections.abc import Callable
from math import nan

import jax
import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE
from rich.table import Table

from adaptive import ring
from adaptive.compression import fixed
from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.model import Params, State
from adaptive.prequential import replay_arrays
from adaptive.settings import BLOCK, Level, Model

TITLE = (
    "for one sample: parameters that take part, thousands of operations, MiB moved, "
    f"us alone and in a block of {BLOCK}; error, by steps ahead, as a share of persistence's"
)
COLUMNS = ("level", "parameters", "operations", "moved", "alone", f"of {BLOCK}")


def report(
    model: Model,
    time: Float[np.ndarray, " rows"],
    values: Float[np.ndarray, "rows channels"],
    compiled: Callable[[str], None],
    progress: Callable[[int], None],
) -> tuple[Table, Table]:
    """Take a recording through every level, from the start each.

    Args:
        model: Of the controller.
        time: When each sample was taken [s].
        values: NaN where missing.
        compiled: Called with the name of each program.
        progress: Called with numbers of rows done.

    Returns:
        By level: shared parameters that take part; operations for a sample as the step is written,
        and bytes moved as it is compiled, as XLA counts them (a branch that is seldom taken counts
        in full); the time of a call for one sample and, for each, of a whole block; and what is
        left of the squared error of persistence in the second half of the recording, for the first
        and the last step of the horizon, the mean over channels. And by part: the bytes of one
        stream's state.
    """
    channels = values.shape[1]
    first = Engine(1, channels, model)
    for name in first.warm_up():
        compiled(name)
    costs, steps = first.costs(), sorted({1, model.horizon_samples})
    table = Table(title=TITLE, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in (*COLUMNS, *(f"error, {step}" for step in steps)):
        table.add_column(name, justify="left" if name == "level" else "right")
    for i, level in enumerate(model.ladder()):
        engine = Engine(1, channels, model)
        engine.take_programs(first)
        controller = Controller(1, channels, model, engine=engine)
        results = replay_arrays(controller, time, values, level=i, progress=progress)
        operations = (first.step(level).cost_analysis() or {}).get("flops", nan)
        moved = (first.programs.run[i].cost_analysis() or {}).get("bytes accessed", nan)
        table.add_row(
            level.name,
            str(parameters(first.params, level)),
            f"{1e-3 * operations:.0f}",
            f"{2**-20 * moved:.1f}",
            *(f"{1e6 * costs[i][size] / size:.0f}" for size in (1, BLOCK)),
            *(f"{left(results.values, results.forecast, step):.3f}" for step in steps),
        )
    return table, state_table(first.bank)


def parameters(params: Params, level: Level) -> int:
    """How many shared parameters take part at a level; keys and values are kept at each."""
    layer = params.encoder.layers[-1]
    heads, units = len(layer.out), len(layer.down)
    fading = () if fixed(layer) else layer.fading
    by_head = numbers((layer.query, layer.out, fading)) // heads
    by_unit = numbers((layer.up, layer.down)) // units
    encoder = numbers(params.encoder) - (heads - (level.heads or heads)) * by_head
    encoder -= (units - (level.units or units)) * by_unit
    return (level.memory_samples > 0) * numbers(params.recall) + (
        level.window_samples > 0
    ) * encoder


def numbers(tree: object) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def left(
    values: Float[np.ndarray, "rows channels"],
    forecast: Float[np.ndarray, "rows horizon channels"],
    step: int,
) -> float:
    """What forecasts leave of the squared error of persistence, in the second half; NaN if none."""
    half = len(values) // 2
    error = (values[half + step :] - forecast[half:-step, step - 1]) ** 2
    before = (values[half + step :] - values[half:-step]) ** 2
    known = np.isfinite(error) & np.isfinite(before)
    mine, other = (np.sum(np.where(known, one, 0.0), axis=0) for one in (error, before))
    moves = other > 0
    return float(np.mean(mine[moves] / other[moves])) if moves.any() else nan


def state_table(bank: State) -> Table:
    """Lay out the bytes of one stream's state, which is the same at every level."""
    sizes = {}
    for name, part in zip(bank._fields, bank, strict=True):
        sizes[name] = sum(size(leaf) for leaf in jax.tree.leaves(part, is_leaf=ring.is_view))
    table = Table(title="bytes of one stream", title_justify="left", box=SIMPLE)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    rest = 0
    for name, count in sorted(sizes.items(), key=lambda item: -item[1]):
        if count >= sum(sizes.values()) / 100:
            table.add_row(name, f"{count:,}")
        else:
            rest += count
    table.add_row("all others", f"{rest:,}")
    table.add_row("together", f"{sum(sizes.values()):,}", style="bold")
    return table


def size(leaf: np.ndarray | ring.View) -> int:
    """Bytes of one stream of a bank's array."""
    rows = leaf.rows if isinstance(leaf, ring.View) else leaf
    return rows.nbytes // rows.shape[0]
