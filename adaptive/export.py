"""The compiled model as StableHLO, to run where neither this package nor its source is.

An exported program takes the state of a bank by name and a block of samples as `programs.run` does;
it returns the state that has changed, by name, and the outputs. The names
are those of `Engine.arrays`, which a checkpoint holds behind the name of their bank
(`bank.0.` ...): what an agent has learned can be handed to the program.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.export import deserialize
from jax.export import export as exported
from safetensors.numpy import load_file, save_file

from adaptive.engine import Engine
from adaptive.programs import run

State = dict[str, np.ndarray]
Program = Callable[[State, np.ndarray], tuple[State, np.ndarray]]
PROGRAM, STATE = "{level}.stablehlo", "state.safetensors"


def state_of(engine: Engine) -> State:
    """Parameters and streams by name, without what only learning needs."""
    leaves = jax.tree_util.tree_leaves_with_path((engine.params, None, engine.bank))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def save(engine: Engine, level: int, folder: Path) -> tuple[Path, Path]:
    """Write the program of a level, and the state it begins with.

    Args:
        engine: Of the bank; nothing needs to be compiled.
        level: Index in the ladder.
        folder: Made if missing.

    Returns:
        The two files. What the outputs mean is in the second one's metadata: `outputs`, names and
        shapes in their order.

    Raises:
        ImportError: The extra `export` is not installed.
    """
    levels, layout = engine.programs.levels, engine.layout
    paths, form = jax.tree_util.tree_flatten_with_path((engine.params, None, engine.bank))
    names = [jax.tree_util.keystr(path) for path, _ in paths]

    def program(state, block):
        params, _, bank = jax.tree.unflatten(form, [state[name] for name in names])
        store = layout.pack(bank)
        store, packed = run(params, store, block, levels=levels, number=level, layout=layout)
        leaves = jax.tree_util.tree_leaves_with_path((None, None, layout.unpack(store)))
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, packed

    state = state_of(engine)
    made = exported(jax.jit(program))(state, engine.programs.no_block())
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / PROGRAM.format(level=levels[level].name), folder / STATE
    files[0].write_bytes(made.serialize())
    save_file(state, files[1], {"outputs": json.dumps(engine.outputs())})
    return files


def load(program: Path, state: Path) -> tuple[Program, State]:
    """Read what `save` wrote; the program is compiled when it is first called."""
    call = jax.jit(deserialize(bytearray(program.read_bytes())).call)

    def through(state: State, block: np.ndarray) -> tuple[State, np.ndarray]:
        changed, packed = call(state, block)
        return {**state, **changed}, np.asarray(packed)[: np.count_nonzero(block[:, 0] >= 0)]

    return through, load_file(state)
