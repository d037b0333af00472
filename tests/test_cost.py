from dataclasses import replace

import numpy as np
import pytest

from adaptive import cost
from adaptive.__main__ import main
from adaptive.engine import Engine
from adaptive.settings import Level, Model

SMALL = Model(memory_samples=512, window_samples=16, dim=8, heads=2)


@pytest.mark.parametrize(("encoder", "slope"), [("delta", 0), ("attention", 1)])
def test_parameters_are_those_that_take_part(encoder, slope):
    params = Engine(1, 3, replace(SMALL, encoder=encoder)).params
    recall, whole = cost.numbers(params.recall), cost.numbers(params)
    assert cost.parameters(params, Level("none")) == 0
    assert cost.parameters(params, Level("recall", 512)) == recall
    assert cost.parameters(params, Level("all", 512, 16)) == whole
    # A head of 4 has a query and an output of 8 by 4, and, but for a delta layer's, whose gates are
    # always needed, a slope; a hidden unit 8 in and 8 out.
    assert cost.parameters(params, Level("one head", 512, 16, heads=1)) == whole - 64 - slope
    assert cost.parameters(params, Level("few units", 512, 16, units=13)) == whole - 3 * 16


def test_what_forecasts_leave_of_the_error_of_persistence():
    values = np.arange(12.0)[:, None] + (0.0, 5.0)
    forecast = np.stack([values + step for step in (0.5, 2.0)], axis=1)
    assert cost.left(values, forecast, 1) == pytest.approx(0.25)
    assert cost.left(values, forecast, 2) == 0.0
    values[8, 0] = np.nan
    assert cost.left(values, forecast, 1) == pytest.approx(0.25)
    assert np.isnan(cost.left(np.ones((12, 1)), forecast[:, :, :1], 1))


def test_the_state_of_a_stream_is_the_same_in_every_bank():
    one, many = (cost.state_table(Engine(streams, 2, SMALL).bank) for streams in (1, 5))
    assert [list(column.cells) for column in one.columns] == [
        list(column.cells) for column in many.columns
    ]


@pytest.mark.slow
def test_cost_prints_every_level_with_its_error(tmp_path, capsys):
    config = tmp_path / "small.toml"
    config.write_text("[model]\nmemory_samples = 512\nwindow_samples = 16\ndim = 8\nheads = 2\n")
    rows = np.column_stack((np.arange(600.0), np.sin(np.arange(600) / 5.0)))
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="time,a", comments="")
    assert main(["cost", str(tmp_path / "a.csv"), "--config", str(config), "--horizon", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The second table has parts of the state by other names, `trunk` among them.
    found = {name: rest for name, *rest in map(str.split, filter(str.strip, lines[::-1]))}
    last = 0.0
    for level in ("trunk", "full"):
        _, operations, moved, alone, each, one, two = map(float, found[level])
        assert operations > last
        last = operations
        assert moved > 0
        assert 0 < each < alone
        assert 0 <= one < 0.2  # a sine is easy
        assert 0 <= two < 0.2
    assert "together" in found
    assert max(map(len, lines)) <= 80
