import json

import numpy as np
import pytest
from safetensors import safe_open

from adaptive import export
from adaptive.controller import Controller
from adaptive.settings import Model

SMALL = Model(horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2)


def part(block, many):
    """The first samples of a block."""
    block = block.copy()
    block[many:, 0] = -1.0
    return block


@pytest.mark.slow
def test_an_exported_program_gives_what_the_engine_gives_and_goes_on_from_what_it_learned(tmp_path):
    controller = Controller(2, 1, SMALL)
    engine, full = controller.engine, len(controller.levels) - 1
    for _ in engine.warm_up([full]):
        pass
    program, state = export.load(*export.save(engine, full, tmp_path))
    rng, block = np.random.default_rng(0), engine.programs.no_block()
    for _ in range(3):
        block[:] = np.column_stack(
            (rng.integers(0, 2, len(block)), rng.normal(size=len(block)), np.ones(len(block)))
        )
        state, got = program(state, part(block, 20))
        wanted = engine.run(full, part(block, 20))
        assert got.shape == wanted.shape == (20, wanted.shape[1])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # The state of an agent has the same names, so it can be handed over.
    engine.learn(0)
    mine = export.state_of(engine)
    assert mine.keys() == state.keys() == engine.arrays().keys() & mine.keys()
    _, got = program(mine, part(block, 5))
    np.testing.assert_allclose(got, engine.run(full, part(block, 5)), rtol=1e-4, atol=1e-5)


def test_the_file_says_what_the_outputs_are(tmp_path):
    controller = Controller(1, 1, SMALL)
    program, state = export.save(controller.engine, 0, tmp_path / "new")
    assert program.name == "trunk.stablehlo"
    with safe_open(state, "numpy") as file:
        outputs = json.loads(file.metadata()["outputs"])
    assert {name: tuple(form) for name, form in outputs.items()} == controller.engine.outputs()
