"""Measures the quality of answers: forecasts, anomalies, events, alarms, changes, bad feedback.

    python tests/benchmarks/quality.py DATA --save OUT [--only KINDS] [--level NAME]

DATA holds the public data sets by folder (ett, nab, skab, smd, asd, smap_msl, ucr, ecg, traffic,
drift); what is not there is left out. Each recording is taken through `adaptive replay` once, with
the default configuration; `drift.py`, `poison.py` and `dismissal.py` beside this file are run as
they are; two commands at a time. Then `scorers` are run and all tables are printed. What has been
run into OUT already is not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from sensors.recordings import read

SCORERS = Path(__file__).with_name("scorers")
STEPS = ("1", "24", "48", "96")
RECORDS = ("106", "116", "119", "208", "223")
UNTIL, DELAY = 300.0, 10.0  # [s] labels of the first five minutes, each known so much later
VENTRICULAR, NORMAL = ("V", "E"), ("N", "L", "R", "A", "a", "J", "S", "e", "j")
SCRIPTS = ("drift", "poison", "dismissal")  # beside this file; each prints a table of its own
GROUPS = ("skab", "smd", "asd", "smap_msl", "ucr", "sed", "svdb")


def table(path: Path, delimiter: str, first: int, last: int, label: int) -> dict[str, np.ndarray]:
    """Columns `first` to `last` of a table as values, column `label` as labels."""
    rows = np.genfromtxt(path, delimiter=delimiter, skip_header=1)
    return {"values": rows[:, first:last], "label": rows[:, label]}


def anomalies(data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every labelled series by group/name: `values` and `label` of its last rows."""
    found = {}
    for path in sorted((data / "skab/valve1").glob("*.csv")):
        found[f"skab/{path.stem}"] = table(path, ";", 1, 9, 9)
    for group in ("smd", "asd", "smap_msl"):
        for path in sorted((data / group).glob("*.npz")):
            one = np.load(path)
            values = np.concatenate((one["train"], one["test"]))
            found[f"{group}/{path.stem}"] = {"values": values, "label": one["test_label"]}
    for path in sorted((data / "ucr").glob("*_UCR_*.txt")):
        values = np.loadtxt(path).reshape(-1, 1)
        first, last = map(int, path.stem.split("_")[-2:])
        label = np.zeros(len(values))
        label[first - 1 : last] = 1
        found[f"ucr/{path.stem}"] = {"values": values, "label": label}
    for name, path in (("sed", "ucr/SED_engine_disk"), ("svdb", "ecg/svdb_805_premature")):
        if (data / f"{path}.csv.gz").exists():
            found[f"{name}/{path.split('/')[1]}"] = table(data / f"{path}.csv.gz", ",", 0, 1, 1)
    return found


def beats(record: Path) -> str:
    """A recording's annotations as the labels of an operator: ventricular beats, and others."""
    found = read(record)
    said = [
        f"{at:.3f},{int(symbol in VENTRICULAR)}"
        for at, symbol in ((event[0], event[1]) for event in found.events)
        if symbol in VENTRICULAR + NORMAL
    ]
    return "\n".join(["time,label", *said]) + "\n"


def jobs(data: Path, out: Path, only: set[str]) -> list[tuple[Path, list[str]]]:
    """What to replay: where its results go, and the arguments."""
    found = []
    for name in ("ETTm1", "ETTh1"):
        path = data / f"ett/{name}.csv.gz"
        if only & {"forecast", "alarm"} and path.exists():
            found.append((out / f"forecast-{name}", [str(path), "--horizon", "96"]))
    if "nab" in only and (data / "nab/data").is_dir():
        found.append((out / "nab", [str(data / "nab/data")]))
    if "anomaly" in only:
        for name, arrays in anomalies(data).items():
            path = out / "inputs" / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays)
        there = [out / "inputs" / group for group in GROUPS]
        found += [(out / path.name, [str(path)]) for path in there if path.is_dir()]
    for record in RECORDS:
        path = data / f"ecg/mitdb/{record}"
        if "event" in only and path.with_suffix(".dat").exists():
            labels = out / "inputs" / f"{record}.csv"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text(beats(path))
            known = ("--labels", str(labels), "--label-until", str(UNTIL))
            found.append((out / f"ecg-{record}", [str(path), *known, "--label-delay", str(DELAY)]))
    traffic = data / "traffic/metro_interstate_i94.csv.gz"
    if "alarm" in only and traffic.exists():
        columns = ("--columns", "traffic_volume", "--time-column", "date_time")
        found.append((out / "traffic", [str(traffic), *columns]))
    if "drift" in only:
        found.append((out / "drift", ["--data", str(data)] if (data / "drift").is_dir() else []))
    if "poison" in only and (data / "ett").is_dir() and (data / "ecg/mitdb").is_dir():
        found.append((out / "poison", [str(data)]))
    if "dismissal" in only:
        found.append((out / "dismissal", ["--seeds", "2"]))
    return found


def run(job: tuple[Path, list[str]], level: str) -> None:
    """Run one job at a level, unless its results are there."""
    folder, arguments = job
    done = folder / "done"
    if done.exists():
        return
    begin = time.perf_counter()
    how = "--level", level, "--save", str(folder)
    command = [sys.executable, "-m", "adaptive", "replay", *arguments, *how]
    if folder.name in SCRIPTS:
        command = [sys.executable, str(Path(__file__).with_name(f"{folder.name}.py")), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stderr}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "printed.txt").write_text(ended.stdout)
    done.touch()
    print(f"{folder.name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def score(name: str, out: Path, *arguments: object) -> dict:
    """Run a scorer; return all its numbers."""
    target = out / "scored.json"
    command = [sys.executable, str(SCORERS / name), *map(str, arguments), "--json", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    return json.loads(target.read_text())


def pairs(out: Path, name: str, lines: list[str]) -> Path:
    """A file of results and their labels, for a scorer."""
    path = out / f"{name}.pairs"
    path.write_text("\n".join(lines) + "\n")
    return path


def report(data: Path, out: Path) -> list[tuple[str, str]]:
    """Score what has been replayed; what it is, and the numbers."""
    lines: list[tuple[str, str]] = []
    for name, protocol in (("ETTh1", "etth"), ("ETTm1", "ettm")):
        if (out / f"forecast-{name}" / "done").exists():
            (result,) = (out / f"forecast-{name}").glob("*.npz")
            found = score("score_forecast.py", out, result, "--protocol", protocol)
            mse = " / ".join(f"{found['horizons'][step]['forecast']['mse']:.4f}" for step in STEPS)
            lines.append((f"{name}, MSE at {'/'.join(STEPS)}", mse))
    if (out / "nab" / "done").exists():
        found = score("score_nab.py", out, out / "nab", "--nab", data / "nab")
        text = " / ".join(f"{profile['score']:.1f}" for profile in found.values())
        lines.append((f"NAB, {' / '.join(found)}", text))
    every: list[str] = []
    for group in GROUPS:
        if (out / group / "done").exists():
            some = [
                f"{path},{out / 'inputs' / group / path.name}"
                for path in sorted((out / group).glob("*.npz"))
            ]
            every += some
            chosen = pairs(out, group, some)
            found = score("score_anomaly.py", out, "--pairs", chosen, "--tail")
            lines.append((f"{group} ({len(some)}), VUS-PR", f"{found['mean']['vus_pr']:.3f}"))
    if every:
        found = score("score_anomaly.py", out, "--pairs", pairs(out, "all", every), "--tail")
        pooled = found["one threshold"]["auc_pr"]
        lines.append((f"one threshold over {len(every)}, average precision", f"{pooled:.3f}"))
    some = [
        f"{next((out / f'ecg-{n}').glob('*.npz'))},{data / 'ecg/mitdb' / n}"
        for n in RECORDS
        if (out / f"ecg-{n}" / "done").exists()
    ]
    ventricular = ("--symbols", "V,E", "--ignore", "F,Q,/,f", "--from", UNTIL)
    for use in ("score", "event") if some else ():
        chosen = ("--pairs", pairs(out, "ecg", some), "--use", use)
        found = score("score_events.py", out, *chosen, *ventricular)
        for path, one in [*found["results"].items(), ("gross", found.get("gross", {}))]:
            if one:
                fixed = one["at_threshold"]
                text = f"average precision {one['average_precision']:.3f}"
                text += f", F1 {fixed['f1']:.3f}" if fixed else ""
                lines.append((f"{Path(path).stem}, {use} after {UNTIL:.0f} s", text))
    for folder in ("forecast-ETTh1", "forecast-ETTm1", "traffic"):
        if (out / folder / "done").exists():
            (result,) = (out / folder).glob("*.npz")
            found = score("score_alarms.py", out, result, "--target", "1/day")["results"]
            (one,) = found.values()
            text = ", ".join(f"{k} {one[k]:.3f}" for k in ("ratio", "power"))
            lines.append((f"{result.stem}, alarms at 1/day", text))
    return lines


def main() -> None:
    """Read the options, replay and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--save", type=Path, required=True)
    everything = ("forecast", "nab", "anomaly", "event", "alarm", *SCRIPTS)
    parser.add_argument("--only", metavar="KINDS", default=",".join(everything))
    parser.add_argument("--level", default="full", help="of the model (default full)")
    args = parser.parse_args()
    args.save.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        todo = jobs(args.data, args.save, set(args.only.split(",")))
        list(pool.map(partial(run, level=args.level), todo))
    for name, text in report(args.data, args.save):
        print(f"{name:45} {text}")
    for name in SCRIPTS:
        if (args.save / name / "done").exists():
            print(f"\n{name}\n{(args.save / name / 'printed.txt').read_text()}", end="")


if __name__ == "__main__":
    main()
