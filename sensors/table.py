"""Tables of text: delimited lines under a header, as sensors' recordings often come."""

import csv
import gzip
import math
import re
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sensors.sample import Rejected

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})  # in any case of letters
TIME_NAME = re.compile(r"(time|timestamp|t|ts|seconds?|epoch)(_m?s)?(\s*[\[(].*)?", re.IGNORECASE)
UNIT = re.compile(r"[\[(]([^\[\]()]*)[\])]\s*$")


class Table(NamedTuple):
    """What a table of text holds."""

    channels: tuple[str, ...]
    units: tuple[str, ...]  # from brackets at the end of a column's name, "" without
    time: np.ndarray | None  # [rows] float64; None if the table has no column for it
    values: np.ndarray  # [rows, channels] float64, NaN where missing
    rejected: tuple[Rejected, ...]  # rows that cannot be used
    notes: tuple[str, ...]  # what was left out, in words
    dated: bool  # whether time was written as dates


def read_text(path: Path) -> tuple[str, Rejected | None]:
    """Read a text file, packed by gzip if it is named so.

    Returns:
        The text, without a byte order mark, and a reject if the file is cut off: then it is what
        came before the cut. Bytes that are not UTF-8 become question marks.
    """
    cut, parts = None, []
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            # read1, for read would throw away what it has when it meets the cut.
            while part := file.read1(1 << 18):
                parts.append(part)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not parts:
                raise ValueError(
                    f"{path}: wanted a file packed by gzip, got one that cannot be unpacked: "
                    f"{error}. Fetch it again, or take the .gz off its name if it is plain text."
                ) from error
            cut = Rejected("", "truncated", f"{path}: the file is cut off: {error}")
    return b"".join(parts).decode("utf-8-sig", "replace"), cut


def read_table(path: Path, columns: Sequence[str] | None, time_column: str | None) -> Table:
    """Read a table with a header, delimited by comma, semicolon or tab.

    Time is the column named `time_column`; or else the first one if it holds ISO time stamps
    (seconds since the epoch; without a zone they are UTC), row numbers, or numbers under a name
    like "time". Numbers are kept as they are, in any order. Rows whose number of cells differs
    from the header's, or whose time is not one, are rejected with the number of their line.

    Args:
        path: Of the file; packed if its name ends in ".gz".
        columns: The channels; None for every column of numbers that is not the time.
        time_column: The name of the time's column; None to judge by the first.

    Returns:
        The table. A cell that is no number in a column of numbers, and an infinite one, is
        missing; a note counts them.

    Raises:
        ValueError: There is no header, a column is missing or asked for and not of numbers, or
            nothing is left.
    """
    text, cut = read_text(path)
    header, rows, numbers, rejected = _split(path, text)
    if cut:
        rejected.append(cut)
    cells = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    if not rows:
        cells = {name: () for name in header}
    notes: list[str] = []
    time, time_name, dated = _find_time(path, header, cells, time_column)
    wanted = tuple(_known(path, name, header) for name in columns or ())
    kept: dict[str, np.ndarray] = {}
    for name in wanted or [name for name in header if name != time_name]:
        values, strange = _numbers(cells[name])
        seen = len(values) - sum(cell.strip().lower() in MISSING for cell in strange.values())
        bad = {n: cell for n, cell in strange.items() if cell.strip().lower() not in MISSING}
        if rows and (2 * len(bad) >= max(seen, 1) or (not wanted and seen == 0)):
            what = "is empty" if not bad else f"holds {next(iter(bad.values()))[:40]!r}, no number"
            if wanted and bad:
                raise ValueError(
                    f"{path}: the column {name!r} {what}. Name columns of numbers, out of "
                    f"{', '.join(header)}."
                )
            if not wanted:
                hint = "; it may be the time: name it as time_column" if _iso(cells[name]) else ""
                notes.append(f"column {name!r} is left out: it {what}{hint}")
                continue
        if bad:
            n, cell = next(iter(bad.items()))
            notes.append(
                f"column {name!r}: {len(bad)} cells are no finite numbers and count as missing, "
                f"first {cell[:40]!r} in line {numbers[n]}"
            )
        kept[name] = values
    if not kept:
        raise ValueError(f"{path}: no column of numbers is left. {' '.join(notes)}")
    values = np.column_stack(list(kept.values()))
    if time is not None and (lost := np.flatnonzero(~np.isfinite(time))).size:
        rejected += [
            Rejected(
                "", "time", f"{path}, line {numbers[n]}: {cells[time_name][n][:40]!r} is no time"
            )
            for n in lost
        ]
        values, time = np.delete(values, lost, 0), np.delete(time, lost)
    units = tuple(match[1] if (match := UNIT.search(name)) else "" for name in kept)
    return Table(tuple(kept), units, time, values, tuple(rejected), tuple(notes), dated)


def name_nearest(wanted: str, known: Sequence[str]) -> str:
    """Say which names there are, the one nearest to what was wanted first."""
    near = get_close_matches(wanted, known, 1, 0.4)
    return (f"did you mean {near[0]!r}? " if near else "") + f"There are: {', '.join(known)}."


def _split(path: Path, text: str) -> tuple[list[str], list[list[str]], list[int], list[Rejected]]:
    """Split the text into header, rows, the number of each row's line, and rejects."""
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header: list[str] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    rejected: list[Rejected] = []
    previous = 0
    try:
        for row in reader:
            begin, previous = previous + 1, reader.line_num
            if len(row) == len(header):
                rows.append(row)
                numbers.append(begin)
            elif not header:
                header = _header(path, row)
            elif not row and len(header) == 1:
                rows.append([""])
                numbers.append(begin)
            elif row:
                where = f"line {begin}" if begin == previous else f"lines {begin} to {previous}"
                what = f"wanted {len(header)} cells, got {len(row)}"
                rejected.append(Rejected("", "ragged", f"{path}, {where}: {what}"))
    except csv.Error as error:
        what = f"from line {previous + 1} on nothing can be read: {error}"
        rejected.append(Rejected("", "malformed", f"{path}: {what}"))
    while rows and len(header) == 1 and rows[-1] == [""]:
        rows.pop()
        numbers.pop()
    if not header:
        raise ValueError(f"{path}: wanted a header and rows below it, got an empty file.")
    return header, rows, numbers, rejected


def _header(path: Path, row: list[str]) -> list[str]:
    if not row:
        return []
    if all(_is_number(cell) for cell in row):
        raise ValueError(
            f"{path}: wanted a header that names the columns, got numbers, {row[0][:40]!r}. "
            "Put a line with names on top."
        )
    names: list[str] = []
    for n, cell in enumerate(row):
        name = cell.strip() or f"column {n + 1}"
        names.append(name if name not in names else f"{name}.{n + 1}")
    return names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Read a column; NaN, and the cell by its row, where it is not a finite number."""
    try:
        values = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        values = np.array([float(cell) if _is_number(cell) else np.nan for cell in cells])
    strange = {n: cells[n] for n in np.flatnonzero(~np.isfinite(values)).tolist()}
    values[list(strange)] = np.nan
    return values, strange


def _iso(cells: Sequence[str]) -> bool:
    """Tell whether the first cell that is there is a time stamp."""
    first = next((cell for cell in cells if cell.strip().lower() not in MISSING), "")
    return not _is_number(first) and math.isfinite(_seconds(first))


def _seconds(cell: str) -> float:
    try:
        moment = datetime.fromisoformat(cell.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return np.nan


def _find_time(
    path: Path, header: list[str], cells: dict[str, tuple], time_column: str | None
) -> tuple[np.ndarray | None, str, bool]:
    """Find the time of each row, the name of its column, and whether that holds dates."""
    name = _known(path, time_column, header) if time_column else header[0]
    if _iso(cells[name]):
        return np.array([_seconds(cell) for cell in cells[name]]), name, True
    values, strange = _numbers(cells[name])
    if time_column:
        if len(values) and len(strange) == len(values):
            raise ValueError(
                f"{path}: the time column {name!r} should hold ISO time stamps or numbers, got "
                f"{cells[name][0][:40]!r}. Name another, out of {', '.join(header)}."
            )
        return values, name, False
    counts = len(values) > 1 and not strange and bool(np.all(np.diff(values) == 1))
    whole = counts and bool(values[0] == np.round(values[0]))
    # A table of a single column holds values, whatever its name.
    if len(header) > 1 and (whole or (TIME_NAME.fullmatch(name) and len(strange) < len(values))):
        return values, name, False
    return None, "", False


def _known(path: Path, name: str, header: list[str]) -> str:
    if name not in header:
        raise ValueError(f"{path}: no column {name!r}; {name_nearest(name, header)}")
    return name
