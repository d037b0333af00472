"""Recordings read whole from files: tables, WFDB records, EDF, NumPy arrays, JSON lines."""

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np

from sensors import wire
from sensors.sample import Feedback, Rejected, Sample, Stream
from sensors.table import name_nearest, read_table, read_text

TABLES = (".csv", ".csv.gz")
LINES = (".jsonl", ".jsonl.gz", ".json.gz")
KNOWN = (*TABLES, *LINES, ".npz", ".edf", "a WFDB record (its path without suffix)")


class Annotation(NamedTuple):
    """What a recording says about one of its moments."""

    time: float  # [s] on the recording's clock
    label: str | int  # a symbol such as "V" or a text; 0 or 1 for feedback, see `Feedback`
    duration: float = 0.0  # [s]


class Recording(NamedTuple):
    """The contents of one file."""

    name: str  # of the file, without folder and suffix
    channels: tuple[str, ...]
    units: tuple[str, ...]  # one for each channel, "" where unknown
    time: np.ndarray  # [N] float64 [s] as recorded, even if it repeats or goes back; see `read`
    values: np.ndarray  # [N, C] float64 in `units`, NaN where missing; read-only
    sampling_rate: float | None = None  # [Hz] if the file, or the caller, states it
    events: tuple[Annotation, ...] = ()  # by time
    rejected: tuple[Rejected, ...] = ()  # rows that could not be used
    notes: tuple[str, ...] = ()  # columns that were left out and the like
    dated: bool = False  # whether the file wrote its times as dates, ISO 8601


def read(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    time_column: str | None = None,
    arrays: Sequence[str] | None = None,
    sampling_rate: float | None = None,
) -> Recording:
    """Read a recording.

    | file | time |
    | --- | --- |
    | `.csv`, `.csv.gz`: a header, then rows, see `sensors.table.read_table` | its column |
    | WFDB record, path without suffix; annotations from `.atr` | seconds from the start |
    | `.edf`, the signals at the rate that most of them have | seconds from the start |
    | `.npz`: `values [N, C]` or the named arrays, one after another | `time [N]` if it has it |
    | `.jsonl`, `.jsonl.gz`, `.json.gz`: payloads of `sensors.wire`, one a line | theirs |

    Without a time, it is the row number; or, if `sampling_rate` is given, that divided by it.

    Args:
        path: Of the file or record.
        columns: The channels to take, in this order; None for all of them.
        time_column: Of a table: the column that is the time; None to judge by the first.
        arrays: Of an `.npz`: the names of arrays with the same columns.
        sampling_rate: What the file does not state [Hz].

    Returns:
        The recording. All that was left out is in `rejected` and `notes`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is of no known kind, or does not hold what was asked for.
        ModuleNotFoundError: A package of the extra `ecg` is needed for WFDB or EDF.
    """
    path = Path(path)
    if sampling_rate is not None and not 0 < sampling_rate < float("inf"):
        raise ValueError(f"{path}: sampling_rate must be above 0 Hz, got {sampling_rate}.")
    if path.suffix == ".hea":
        path = path.with_suffix("")
    kind = path.name.lower()
    if not path.is_file() and Path(f"{path}.hea").is_file():
        recording = _read_wfdb(path)
    elif not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file, and no WFDB record either: there is no {path.name}.hea."
        )
    elif kind.endswith(TABLES):
        table = read_table(path, columns, time_column)
        columns = None
        time = _rows(len(table.values), sampling_rate) if table.time is None else table.time
        recording = Recording(
            _name(path),
            table.channels,
            table.units,
            time,
            table.values,
            rejected=table.rejected,
            notes=table.notes,
            dated=table.dated,
        )
    elif kind.endswith(LINES):
        recording = _read_lines(path)
    elif kind.endswith(".npz"):
        recording = _read_arrays(path, arrays, sampling_rate)
    elif kind.endswith(".edf"):
        recording = _read_edf(path, columns)
    else:
        raise ValueError(
            f"{path}: wanted one of {', '.join(KNOWN)}, got "
            f"{'a folder' if path.is_dir() else repr(path.suffix or path.name)}. Values one a "
            "line become a .csv with a line on top that names them."
        )
    if columns:
        recording = _select(path, recording, columns)
    recording.values.flags.writeable = False
    return recording._replace(sampling_rate=recording.sampling_rate or sampling_rate)


def _name(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return (
        Path(name).stem
        if name.lower().endswith((".csv", ".jsonl", ".json", ".npz", ".edf"))
        else name
    )


def _rows(count: int, sampling_rate: float | None) -> np.ndarray:
    return np.arange(count) / (sampling_rate or 1.0)


def _anonymous(count: int) -> tuple[str, ...]:
    return ("value",) if count == 1 else tuple(f"value_{n}" for n in range(1, count + 1))


def _select(path: Path, recording: Recording, columns: Sequence[str]) -> Recording:
    for name in columns:
        if name not in recording.channels:
            raise ValueError(
                f"{path}: no channel {name!r}; {name_nearest(name, recording.channels)}"
            )
    chosen = [recording.channels.index(name) for name in columns]
    return recording._replace(
        channels=tuple(columns),
        units=tuple(recording.units[n] for n in chosen),
        values=recording.values[:, chosen],
    )


def _need(module: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: reading it needs the package {module}, which is not installed. "
            'Do: pip install "adaptive-attention[ecg]"',
            name=module,
        ) from error


def _read_wfdb(path: Path) -> Recording:
    wfdb = _need("wfdb", path)
    try:
        record = wfdb.rdrecord(str(path))
        marks = wfdb.rdann(str(path), "atr") if Path(f"{path}.atr").is_file() else None
    except Exception as error:  # wfdb has no exception of its own: index, type, value errors
        raise ValueError(
            f"{path}: not a WFDB record that can be read: {type(error).__name__}: {error}. "
            "Compare its .hea, .dat and .atr with their origin."
        ) from error
    if record.p_signal is None:
        raise ValueError(f"{path}: wanted a WFDB record with signals, got one without.")
    rate = float(record.fs)
    events = ()
    if marks is not None:
        pairs = zip(marks.sample, marks.symbol, strict=True)
        events = tuple(Annotation(float(at) / rate, str(symbol)) for at, symbol in pairs)
    channels = tuple(str(name) for name in record.sig_name)
    return Recording(
        path.name,
        channels,
        tuple(unit or "" for unit in record.units),
        _rows(len(record.p_signal), rate),
        np.asarray(record.p_signal, np.float64),
        rate,
        tuple(sorted(events, key=lambda event: event.time)),
    )


def _read_edf(path: Path, columns: Sequence[str] | None) -> Recording:
    pyedflib = _need("pyedflib", path)
    try:
        reader = pyedflib.EdfReader(str(path))
    except OSError as error:
        raise ValueError(f"{path}: not an EDF file that can be read: {error}.") from error
    with reader:
        labels = [label.strip() for label in reader.getSignalLabels()]
        rates = [float(rate) for rate in reader.getSampleFrequencies()]
        taken = [n for n, label in enumerate(labels) if not columns or label in columns]
        if not taken:
            wanted = ", ".join(columns or ()) or "signals"
            raise ValueError(f"{path}: wanted {wanted}; {name_nearest(wanted, labels)}")
        counts = Counter(rates[n] for n in taken)
        # The most common rate; of equally common ones the highest.
        rate = max(counts, key=lambda rate: (counts[rate], rate))
        others = {labels[n]: rates[n] for n in taken if rates[n] != rate}
        if others and columns:
            raise ValueError(
                f"{path}: the signals asked for differ in their rates: {others} beside {rate} Hz. "
                "Read them as recordings of their own."
            )
        taken = [n for n in taken if rates[n] == rate]
        values = np.column_stack([reader.readSignal(n) for n in taken]).astype(np.float64)
        units = tuple(reader.getPhysicalDimension(n).strip() for n in taken)
        marks = zip(*reader.readAnnotations(), strict=True)
        events = (
            Annotation(float(at), str(text), max(float(length), 0.0)) for at, length, text in marks
        )
        events = tuple(sorted(events, key=lambda event: event.time))
    notes = (f"left out, as their rate is not {rate} Hz: {others}",) if others else ()
    channels = tuple(labels[n] for n in taken)
    time = _rows(len(values), rate)
    return Recording(_name(path), channels, units, time, values, rate, events, notes=notes)


def _read_arrays(path: Path, arrays: Sequence[str] | None, rate: float | None) -> Recording:
    wanted = tuple(arrays or ("values",))
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            found = {name: file[name] for name in (*wanted, "time") if name in names}
        found = {name: np.asarray(array, np.float64) for name, array in found.items()}
    except (BadZipFile, EOFError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not an .npz of numbers that can be read: {error}.") from error
    for name in wanted:
        if name not in names:
            raise ValueError(
                f"{path}: no array {name!r}; {name_nearest(name, names)} Name those to read, one "
                "after another, as `arrays`."
            )
    parts, time = [found[name] for name in wanted], found.get("time")
    parts = [part[:, None] if part.ndim == 1 else part for part in parts]
    shapes = [part.shape for part in parts]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] or shape[1] == 0 for shape in shapes):
        raise ValueError(f"{path}: wanted arrays [N, C] with the same C, got {shapes}.")
    values = np.concatenate(parts)
    if time is not None and time.shape != values.shape[:1]:
        raise ValueError(
            f"{path}: wanted `time` with one entry for each of {len(values)} rows, got shape "
            f"{time.shape}."
        )
    rejected = []
    if time is None:
        time = _rows(len(values), rate)
    elif (lost := np.flatnonzero(~np.isfinite(time))).size:
        rejected = [Rejected("", "time", f"{path}, row {n}: {time[n]} is no time") for n in lost]
        values, time = np.delete(values, lost, 0), np.delete(time, lost)
    infinite = np.isinf(values)
    notes = ()
    if infinite.any():
        notes = (f"{int(infinite.sum())} infinite values count as missing",)
        values = np.where(infinite, np.nan, values)
    channels = _anonymous(values.shape[1])
    units = ("",) * len(channels)
    return Recording(
        _name(path), channels, units, time, values, rejected=tuple(rejected), notes=notes
    )


def _read_lines(path: Path) -> Recording:
    text, cut = read_text(path)
    rejected = [cut] if cut else []
    times, rows, events = [], [], []
    stream = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        stream = stream or _guess(line, _name(path))
        named = stream or Stream(_name(path), (), ())
        for item in wire.decode(line, named):
            if isinstance(item, Sample):
                times.append(item.time)
                rows.append(item.values)
            elif isinstance(item, Feedback):
                events.append(Annotation(item.time, item.label, item.duration))
            else:
                rejected.append(item._replace(detail=f"{path}, line {number}: {item.detail}"))
    if not rows or stream is None:
        why = f" The first reject: {rejected[0].detail}." if rejected else ""
        raise ValueError(f"{path}: wanted samples as JSON, one a line, got none.{why}")
    return Recording(
        _name(path),
        stream.channels,
        stream.units,
        np.array(times),
        np.array(rows),
        events=tuple(sorted(events, key=lambda event: event.time)),
        rejected=tuple(rejected),
    )


def _guess(line: str, name: str) -> Stream | None:
    """Describe the stream by one payload; None if that is not a sample."""
    try:
        payload = msgspec.json.decode(line)
        values = payload["values"]
        row = (
            values[0] if isinstance(values, list) and isinstance(values[0], list | dict) else values
        )
        channels = tuple(row) if isinstance(row, dict) else _anonymous(len(row))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    named = payload.get("stream")
    stream = Stream(named if isinstance(named, str) else name, channels, ("",) * len(channels))
    # One that does not hold up itself must not decide for the others.
    good = any(isinstance(item, Sample) for item in wire.decode(line, stream))
    return stream if channels and good else None
