"""`adaptive replay`: recordings in, one row of results out for each row in."""

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptive.prequential import Label, Results
from sensors.recordings import Recording, read

SUFFIXES = (".csv", ".csv.gz", ".npz")


class InputError(ValueError):
    """Something that was handed in cannot be used; the message says what and what to do."""


class Input(NamedTuple):
    """A recording and where its results go, relative to the folder of results."""

    path: Path
    name: Path  # without suffix


def inputs(paths: Sequence[Path]) -> list[Input]:
    """Find the recordings that are meant: files, WFDB records, and all of those in folders.

    Raises:
        InputError: There is nothing there, or two recordings would share their results.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.endswith((*SUFFIXES, ".hea")))
            if not inside:
                raise InputError(f"{path}: no {', '.join(SUFFIXES)} or WFDB record in this folder")
            found += [Input(bare(p, record=True), bare(p.relative_to(path))) for p in inside]
        else:
            found.append(Input(path, Path(bare(path).name)))
    names = [item.name for item in found]
    if twice := {str(name) for name in names if names.count(name) > 1}:
        raise InputError(
            f"two inputs would write the same results: {', '.join(sorted(twice))}. Replay them "
            "into different folders, or give the folder that holds both."
        )
    return found


def bare(path: Path, record: bool = False) -> Path:
    """A path without its suffix; with `record`, only a WFDB header's is cut."""
    for suffix in (".hea",) if record else (*SUFFIXES, ".hea"):
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix))
    return path


def load(
    path: Path,
    columns: Sequence[str] | None = None,
    time_column: str | None = None,
    arrays: Sequence[str] | None = None,
) -> Recording:
    """Read a recording of which every row is to be answered.

    Raises:
        InputError: It cannot be read, or rows of it cannot be used.
    """
    try:
        recording = read(path, columns=columns, time_column=time_column, arrays=arrays)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise InputError(str(error)) from error
    if not len(recording.values):
        raise InputError(f"{path}: no rows")
    if recording.rejected:
        raise InputError(
            f"{recording.rejected[0].detail}. One row out for each row in: "
            f"{len(recording.rejected)} cannot be used; repair or remove them."
        )
    return recording


def read_labels(path: Path, delay: float, until: float) -> list[Label]:
    """Read `time,label[,duration]`, in the unit of the recording's time.

    Args:
        path: A CSV with a header.
        delay: A label is known so long after its time [s].
        until: None whose time is past this is ever shown [s].

    Raises:
        InputError: A line is not what it should be.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    labels = []
    for number, row in enumerate(rows, 2):
        try:
            moment, label = seconds(row["time"]), float(row["label"])
            duration = float(row.get("duration") or 0.0)
            if label not in (0.0, 1.0) or not 0.0 <= duration < inf or not isfinite(moment):
                raise ValueError
        except (KeyError, ValueError, TypeError):
            raise InputError(
                f"{path}: line {number}: wanted time,label[,duration] with label 0 or 1 and a "
                f"duration of at least 0, got {','.join(str(v) for v in row.values())!r}"
            ) from None
        if moment <= until:
            labels.append(Label(moment, int(label), duration, moment + delay))
    return labels


def seconds(text: str) -> float:
    """A number, or a date (UTC if it names no zone) as seconds since the epoch."""
    try:
        return float(text)
    except ValueError:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def write(folder: Path, name: Path, recording: Recording, results: Results) -> Path:
    """Write the results of one recording: all arrays, and a table to look at.

    Returns:
        The path of the `.npz`.
    """
    path = folder / name.with_name(name.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **results._asdict())
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("timestamp", *recording.channels, "anomaly_score", "alarm"))
        stamps = timestamps(recording)
        strength, alarm = results.strength.tolist(), results.alarm.tolist()
        for row, values in enumerate(results.values.tolist()):
            # What an operator sees: how strong the alarm would be, repeats left out.
            table.writerow((next(stamps), *values, f"{strength[row]:.6f}", int(alarm[row])))
    return path


def timestamps(recording: Recording) -> Iterator[str]:
    """The times of a recording as text: dates where it had dates."""
    for time in recording.time.tolist():
        if recording.dated:
            moment = datetime.fromtimestamp(round(time, 6), UTC).replace(tzinfo=None)
            yield moment.isoformat(sep=" ")
        else:
            yield f"{time:.6f}".rstrip("0").rstrip(".")


def paced(
    time: np.ndarray, speed: float, clock: Callable, sleep: Callable
) -> Callable[[int], None]:
    """Wait until a row is due, `speed` times faster than it was recorded."""
    start, first = clock(), float(time[0])

    def wait(row: int) -> None:
        ahead = start + (float(time[row]) - first) / speed - clock()
        if ahead > 0:
            sleep(ahead)

    return wait
