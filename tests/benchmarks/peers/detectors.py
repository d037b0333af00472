"""Streaming anomaly detectors of others on the same series, scored by the same scorer.

    python tests/benchmarks/peers/detectors.py DATA --save OUT [--only hst,ocsvm,z,recall]
        [--groups skab,ucr]

DATA as for `quality.py`. Causal, in one pass, each with its library's defaults: half-space trees on
values scaled by their extremes so far and a linear one-class support vector machine on standardised
ones (both River's), and the largest departure of a channel from its newest 256 values, in their
standard deviation. And `recall`, the plainest form of what this package does: distance to the five
nearest of 4000 past moments at three scales, nothing learned.

With `pip install pysad` also, on standardised values, PySAD's `xstream`, `loda`, `kitnet`, `storm`,
`rshash` (its ranges are those of the first 256 rows), and `rrcf`, random cut forests, which take
13 ms a row.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from river import anomaly, preprocessing

sys.path.append(str(Path(__file__).parents[1]))
from quality import GROUPS, anomalies, pairs, score

WINDOW = 256  # [samples] of the departure
SCALES, LAGS, DELAY, NEAREST = (3, 12, 48), 4000, 120, 5  # of the plain recall


def trees(values):
    """River's half-space trees."""
    return scored(values, anomaly.HalfSpaceTrees(seed=1), preprocessing.MinMaxScaler())


def machine(values):
    """River's one-class support vector machine."""
    return scored(values, anomaly.OneClassSVM(), preprocessing.StandardScaler())


def scored(values, detector, scaler):
    """Scores [rows]: a sample is scored before it is learned."""
    found = np.zeros(len(values))
    for n, row in enumerate(values.tolist()):
        sample = dict(enumerate(row))
        scaler.learn_one(sample)
        sample = scaler.transform_one(sample)
        found[n] = detector.score_one(sample)
        detector.learn_one(sample)
    return found


def departure(values):
    """How far each sample lies from those just before it, in the channel where that is most."""
    found = np.zeros(len(values))
    for n in range(2, len(values)):
        before = values[max(0, n - WINDOW) : n]
        spread = before.std(axis=0)
        off = np.abs(values[n] - before.mean(axis=0))
        found[n] = np.max(np.where(spread > 0, off / np.maximum(spread, 1e-12), off > 0))
    return found


def recall(values):
    """Mean over scales of the distance to the nearest past moments."""
    rows, channels = values.shape
    far, mean, square = np.zeros((len(SCALES), LAGS)), np.zeros(channels), np.zeros(channels)
    found = np.zeros(rows)
    for n, x in enumerate(values):
        off = x - mean
        mean = mean + off / (n + 1)
        square += off * (x - mean)
        variance = square / (n + 1)
        past = values[max(0, n - LAGS) : n][::-1]  # by lag, 1 first
        unit = np.where(variance > 0, variance, np.inf)
        apart = ((past - x) ** 2 / unit).mean(axis=1)
        oldest = max(min(DELAY, n // 4), 1)
        for k, scale in enumerate(SCALES):
            far[k, : len(past)] += (apart - far[k, : len(past)]) / scale
            known = far[k, max(oldest, 2 * scale) : n - scale]
            if len(known) > NEAREST:
                near = np.sqrt(np.partition(known, NEAREST)[:NEAREST]).mean()
                found[n] += near / len(SCALES)
    return found


def pysad(name, **options):
    """A detector of PySAD, which learns a sample and then scores it."""

    def detect(values):
        from pysad import models  # not one of our dependencies

        scaler, found = preprocessing.StandardScaler(), np.zeros(len(values))
        scaled = np.zeros(values.shape)
        for n, row in enumerate(values.tolist()):
            sample = dict(enumerate(row))
            scaler.learn_one(sample)
            scaled[n] = list(scaler.transform_one(sample).values())
        if name == "RSHash":
            first = scaled[:WINDOW]
            options.update(feature_mins=first.min(axis=0), feature_maxes=first.max(axis=0))
        detector = getattr(models, name)(**options)
        for n, row in enumerate(scaled):
            found[n] = np.nan_to_num(float(detector.fit_score_partial(row)))
        return found

    return detect


PEERS = {
    "hst": trees,
    "ocsvm": machine,
    "z": departure,
    "recall": recall,
    "xstream": pysad("xStream", random_state=1),
    "loda": pysad("LODA", random_state=1),
    "kitnet": pysad("KitNet", random_state=1),
    "storm": pysad("ExactStorm"),
    "rshash": pysad("RSHash", random_state=1),
    "rrcf": pysad("RobustRandomCutForest", random_state=1),
}


def main():
    """Print the mean VUS-PR of each peer on each group of series, and its time a row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--only", default="hst,ocsvm,z,recall")
    parser.add_argument("--groups", default=",".join(GROUPS))
    args = parser.parse_args()
    groups = args.groups.split(",")
    found = anomalies(args.data)
    series = {name: found[name] for name in found if name.split("/")[0] in groups}
    inputs = args.save / "inputs"
    for name, arrays in series.items():
        path = inputs / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    for peer in args.only.split(","):
        rows, begin, every = 0, time.perf_counter(), []
        for name, arrays in series.items():
            path = args.save / peer / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.nan_to_num(arrays["values"].astype(float))
            np.savez(path, values=values, score=PEERS[peer](values))
            rows += len(values)
        took = (time.perf_counter() - begin) / rows
        for group in groups:
            some = [
                f"{args.save / peer / name}.npz,{inputs / name}.npz"
                for name in series
                if name.startswith(f"{group}/")
            ]
            if some:
                every += some
                chosen = pairs(args.save, f"{peer}-{group}", some)
                found = score("score_anomaly.py", args.save, "--pairs", chosen, "--tail")
                print(f"{peer:7} {group:9} VUS-PR {found['mean']['vus_pr']:.3f}", flush=True)
        chosen = pairs(args.save, f"{peer}-all", every)
        found = score("score_anomaly.py", args.save, "--pairs", chosen, "--tail")
        pooled = found["one threshold"]["auc_pr"]
        print(f"{peer:7} {'all':9} average precision {pooled:.3f}, {1e6 * took:.0f} us a row")


if __name__ == "__main__":
    main()
