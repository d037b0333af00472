"""What wrong feedback does: absurd and missing samples, and labels that say the opposite.

    python tests/benchmarks/poison.py DATA [--only labels --draw 2] [--records 106,119,208]

DATA holds the public data sets (ett/ETTh1.csv.gz, ecg/mitdb/*). Forecasts: ETTh1 with a value in a
hundred replaced, in each channel by itself, by something 30 deviations or a million units large, or
missing; squared error on the values that were left, in variances of the first quarter, with the
attention frozen and with gradient steps. Events: ventricular beats after the first five minutes,
learned from those minutes' labels, of which one in ten is turned round; the event head alone, as
`scorers/score_events.py` counts.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from ablation import forecasts

sys.path.insert(0, str(Path(__file__).with_name("scorers")))
import score_events

from adaptive import runtime
from adaptive.event import Head
from adaptive.settings import KINDS, Model
from sensors.recordings import read

KIND, STEPS, SERVED = ("nothing", "30 deviations", "a million", "missing"), (1, 24), -1
SHARE, FLIPPED = 0.01, 0.1
UNTIL, DELAY = 300.0, 10.0  # [s]
VENTRICULAR, FUSED = ("V", "E"), ("F", "Q", "/", "f")


def samples(values, kind, rng):
    """Poisoned values, and where they are what they were."""
    start, deviation = len(values) // 4, values[: len(values) // 4].std(axis=0)
    wrong = (rng.random(values.shape) < SHARE) & (kind != "nothing")
    wrong[0] = False
    size = {"30 deviations": 30 * deviation, "a million": 1e6, "missing": np.nan}.get(kind, 0.0)
    other = values + size * rng.normal(size=values.shape)
    return np.where(wrong, other, values), ~wrong, start, deviation


def forecast_errors(values, kind):
    """For each step of `STEPS` the error with the attention frozen, and learning."""
    poisoned, right, start, deviation = samples(values, kind, np.random.default_rng(0))
    found = []
    for learns in (False, True):
        made = forecasts(poisoned, Model(horizon_samples=max(STEPS)), learns)[:, :, SERVED]
        errors = []
        for h in STEPS:
            origins = np.arange(start, len(made) - h)
            off = (made[origins, h - 1] + poisoned[0] - values[origins + h]) / deviation
            judged = right[origins + h]
            errors.append(float((off[judged] ** 2).mean()))
        found.append(errors)
    return list(zip(*found, strict=True))


def events(record, flipped, draw):
    """The labels of the judged beats, and what the event head says of each."""
    recording = read(record)
    time, values = recording.time, recording.values - np.nanmean(recording.values[:100], axis=0)
    marks, symbols = score_events.beats_of(str(record), "atr")
    known = ~np.isin(symbols, FUSED)
    positive = np.isin(symbols, VENTRICULAR)
    turned = np.random.default_rng(draw).random(len(marks)) < (FLIPPED if flipped else 0.0)
    told = [
        (time[mark] + DELAY, mark, int(positive[i] != turned[i]))
        for i, mark in enumerate(marks)
        if known[i] and time[mark] <= UNTIL
    ][::-1]
    head, said = Head(4 * 4096, values.shape[1]), np.zeros(len(values))
    for n, x in enumerate(values.astype(np.float32)):
        while told and told[-1][0] <= time[n]:
            _, mark, label = told.pop()
            head.learn(np.array([mark]), label)
        said[n] = head.observe(n, x.tolist(), 0.0)
    rate, _ = score_events.read_header(str(record))
    value = score_events.beat_values(np.nan_to_num(said), marks, rate, False)
    judged = known & (marks > UNTIL * rate)
    return positive[judged], value[judged]


def main():
    """Print the tables."""
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("data", type=Path)
    args.add_argument("--rows", type=int, default=8000)
    args.add_argument("--records", default="106,116,119,208,223")
    args.add_argument("--only", choices=("forecasts", "labels"))
    args.add_argument("--draw", type=int, default=1, help="of the labels that are turned")
    options = args.parse_args()
    runtime.prepare()
    assert KINDS[SERVED] == "served"
    if options.only != "labels":
        forecast_table(read(options.data / "ett/ETTh1.csv.gz").values[: options.rows])
    if options.only != "forecasts":
        records = [options.data / "ecg/mitdb" / name for name in options.records.split(",")]
        label_table(records, options.draw)


def forecast_table(values):
    """Print what absurd and missing values do."""
    print("poisoned by     step | frozen  learning  ratio")
    for kind in KIND:
        for step, (frozen, learning) in zip(STEPS, forecast_errors(values, kind), strict=True):
            ratio = learning / frozen
            print(f"{kind:15} {step:4} | {frozen:.4f}  {learning:.4f}  {ratio:.3f}", flush=True)


def label_table(records, draw):
    """Print what turned labels do."""
    print("labels          record | F1")
    for kind, flipped in (("as they are", False), ("1 in 10 turned", True)):
        every = []
        for record in records:
            every.append(events(record, flipped, draw))
            f1 = score_events.at_threshold(*every[-1], 0.5)["f1"]
            print(f"{kind:15} {record.name:6} | {f1:.3f}", flush=True)
        label, value = map(np.concatenate, zip(*every, strict=True))
        f1 = score_events.at_threshold(label, value, 0.5)["f1"]
        print(f"{kind:15} gross  | {f1:.3f}", flush=True)


if __name__ == "__main__":
    main()
