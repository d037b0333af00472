"""A small part of the tables of `benchmarks/quality.py`, with margins: answers stay good.

What is asked for is what was measured, less a margin that other machines and small changes need.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from adaptive import Controller, Model, replay_arrays
from sensors.recordings import read

sys.path.append(str(Path(__file__).with_name("benchmarks") / "scorers"))
sys.path.append(str(Path(__file__).with_name("benchmarks")))
import quality
import score_anomaly

pytestmark = pytest.mark.slow


def replayed(many, horizon=1):
    """The results of some recordings of as many channels, each taken from nothing."""
    first, found = None, []
    for values in many:
        controller = Controller(1, values.shape[1], Model(horizon_samples=horizon))
        full = len(controller.levels) - 1
        if first is None:
            list(controller.engine.warm_up([full]))
            first = controller.engine
        else:
            controller.engine.take_programs(first)
        time = np.arange(len(values), dtype=float)
        found.append(replay_arrays(controller, time, values, level=full))
    return found


def vus_pr(data, names):
    """Mean over series, as in the README."""
    series = quality.anomalies(data)
    chosen = [series[name] for name in names]
    found = []
    for one, results in zip(chosen, replayed([one["values"] for one in chosen]), strict=True):
        label = one["label"] > 0
        score = results.score[-len(label) :]
        window = score_anomaly.period(one["values"][:, 0])
        found.append(score_anomaly.evaluate(label, score, window)["vus_pr"])
    return float(np.mean(found))


def test_forecasts_of_hourly_loads_are_good(data):
    values = read(data / "ett/ETTh1.csv.gz").values[:4000]
    (results,) = replayed([values], horizon=24)
    deviation = values[:1000].std(axis=0)
    error = {}
    for step in (1, 24):
        origins = np.arange(1000, len(values) - step)
        off = (results.forecast[origins, step - 1] - values[origins + step]) / deviation
        error[step] = float((off**2).mean())
    assert error[1] < 0.14
    assert error[24] < 0.68


def test_anomalies_of_a_pump_are_found(data):
    assert vus_pr(data, [f"skab/{n}" for n in (0, 1, 2, 3)]) > 0.7
