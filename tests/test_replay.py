import csv
import gzip
import importlib
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from adaptive import replay
from adaptive.__main__ import main
from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.event import LOOK

ROWS = 130
SMALL = """
[model]
memory_samples = 512
window_samples = 16
dim = 8
heads = 2
horizon_samples = 2
learn_every_samples = 0
[alarms]
alarms_per_day = 100.0
"""
START = datetime(2014, 4, 1, 0, 5)


def some(rows=ROWS, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(rows)[:, None] / (6.0 + np.arange(channels)))
    return np.round(wave + rng.normal(0, 0.1, (rows, channels)), 4)


def stamps(rows=ROWS):
    return [START + timedelta(minutes=5 * n) for n in range(rows)]


def table(path, values, times=None, names=("value",), missing=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join((*(("timestamp",) if times else ()), *names))]
    for n, row in enumerate(values.tolist()):
        cells = ["" if (n, c) in missing else repr(x) for c, x in enumerate(row)]
        lines.append(",".join(([str(times[n])] if times else []) + cells))
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Compile each program once for all commands of this file."""
    compiled, plain = {}, Engine.warm_up

    def warm_up(self, levels=None):
        key = self.programs.form, None if levels is None else tuple(levels)
        if key not in compiled:
            yield from plain(self, levels)
            compiled[key] = self
        else:
            self.take_programs(compiled[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "warm_up", warm_up)
        yield


@pytest.fixture
def run(tmp_path):
    """Runs `adaptive replay`; returns its exit status and the folder of its results."""
    config = tmp_path / "small.toml"
    config.write_text(SMALL)
    folders = []

    def run(*args, level="trunk"):
        save = tmp_path / f"out{len(folders)}"
        folders.append(save)
        level = ("--level", level) if level else ()
        command = ("replay", *args, "--save", save, "--config", config, *level)
        return main([str(part) for part in command]), save

    return run


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def arrays_of(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.slow
def test_a_table_with_dates_becomes_arrays_and_a_table_with_the_same_dates(run, tmp_path):
    values = some()
    path = table(tmp_path / "pump.csv", values, stamps(), missing={(60, 0)})
    status, out = run(path)
    assert status == 0
    assert sorted(p.name for p in out.iterdir()) == ["pump.csv", "pump.npz"]
    got = arrays_of(out / "pump.npz")
    wanted = {
        "time": ((ROWS,), "f8"),
        "values": ((ROWS, 1), "f8"),
        "forecast": ((ROWS, 2, 1), "f4"),
        "score": ((ROWS,), "f8"),
        "p_value": ((ROWS,), "f8"),
        "alarm": ((ROWS,), "?"),
        "event": ((ROWS,), "f8"),
        "level": ((ROWS,), "i1"),
        "latency": ((ROWS,), "f8"),
    }
    for name, (shape, kind) in wanted.items():
        assert got[name].shape == shape, name
        assert got[name].dtype == np.dtype(kind), name
    seconds = [t.replace(tzinfo=UTC).timestamp() for t in stamps()]
    np.testing.assert_array_equal(got["time"], seconds)
    values[60] = np.nan
    np.testing.assert_array_equal(got["values"], values)
    assert np.isfinite(got["forecast"]).all()
    assert (got["level"] == 0).all()

    head, *rows = rows_of(out / "pump.csv")
    assert head == ["timestamp", "value", "anomaly_score", "alarm"]
    assert [row[0] for row in rows] == [str(t) for t in stamps()]
    np.testing.assert_array_equal([float(row[1]) for row in rows], values[:, 0])
    strength = [float(row[2]) for row in rows]
    np.testing.assert_allclose(strength, got["strength"], atol=1e-6)
    assert all(0 <= s <= 1 for s in strength)
    assert [int(row[3]) for row in rows] == got["alarm"].astype(int).tolist()


@pytest.mark.parametrize(
    ("times", "written"),
    [
        (None, [str(n) for n in range(ROWS)]),
        ([f"{0.25 * n + 1e9}" for n in range(ROWS)], None),
        ([f"{t.isoformat()}.500" for t in stamps()], [f"{t}.500000" for t in stamps()]),
        ([f"{t.isoformat()}+02:00" for t in stamps()],
         [str(t - timedelta(hours=2)) for t in stamps()]),
    ],
)  # fmt: skip
def test_times_are_written_as_numbers_where_they_were_and_as_dates_where_they_were(
    run, tmp_path, times, written
):
    status, out = run(table(tmp_path / "a.csv", some(), times))
    assert status == 0
    got = [row[0] for row in rows_of(out / "a.csv")[1:]]
    if written is None:
        assert [float(t) for t in got] == [float(t) for t in times]
        assert all(datetime_or_none(t) is None for t in got)
    else:
        assert got == written


def datetime_or_none(text):
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


@pytest.mark.slow
def test_all_kinds_of_input_are_taken_and_folders_keep_their_names(run, tmp_path):
    wfdb = pytest.importorskip("wfdb")
    folder, two = tmp_path / "in", some(channels=2)
    table(folder / "a.csv", some())
    table(folder / "deep" / "b.x.csv.gz", some(), stamps())
    np.savez(folder / "deep" / "c.npz", values=some(), time=np.arange(ROWS) * 0.5)
    (folder / "notes.txt").write_text("nothing")
    wfdb.wrsamp(
        "r100", fs=250, units=["mV", "mV"], sig_name=["I", "II"], p_signal=two,
        write_dir=str(folder / "deep"),
    )  # fmt: skip
    status, out = run(folder)
    assert status == 0
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    stems = ["a", "deep/b.x", "deep/c", "deep/r100"]
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("csv", "npz"))
    np.testing.assert_array_equal(arrays_of(out / "deep/c.npz")["time"], np.arange(ROWS) * 0.5)
    ecg = arrays_of(out / "deep/r100.npz")
    np.testing.assert_allclose(ecg["time"], np.arange(ROWS) / 250)
    np.testing.assert_allclose(ecg["values"], two, atol=0.01)
    assert rows_of(out / "deep/r100.csv")[0] == ["timestamp", "I", "II", "anomaly_score", "alarm"]
    # The same, named one by one: a record by its path without suffix.
    status, again = run(folder / "deep" / "r100", folder / "a.csv")
    assert status == 0
    assert sorted(p.name for p in again.iterdir()) == ["a.csv", "a.npz", "r100.csv", "r100.npz"]
    np.testing.assert_array_equal(arrays_of(again / "r100.npz")["score"], ecg["score"])


@pytest.mark.slow
def test_columns_arrays_and_the_time_column_are_chosen(run, tmp_path):
    values = some(channels=3)
    times = [7.0 * n for n in range(ROWS)]
    path = table(tmp_path / "a.csv", np.column_stack((values, times)), names=("p", "q", "r", "at"))
    status, out = run(path, "--columns", "r,p", "--time-column", "at")
    assert status == 0
    got = arrays_of(out / "a.npz")
    np.testing.assert_array_equal(got["values"], values[:, [2, 0]])
    np.testing.assert_array_equal(got["time"], times)
    np.savez(tmp_path / "b.npz", train=some(50), test=some(40, seed=1))
    status, out = run(tmp_path / "b.npz", "--arrays", "train,test")
    assert status == 0
    got = arrays_of(out / "b.npz")["values"]
    np.testing.assert_array_equal(got, np.concatenate((some(50), some(40, seed=1))))


@pytest.mark.slow
def test_results_do_not_depend_on_the_length_of_the_file(run, tmp_path):
    whole = table(tmp_path / "whole" / "a.csv", some(), stamps())
    part = table(tmp_path / "part" / "a.csv", some()[:77], stamps(77))
    results = [arrays_of(run(path, level="full")[1] / "a.npz") for path in (whole, part)]
    for name in results[0]:
        if name != "latency":
            np.testing.assert_array_equal(results[0][name][:77], results[1][name], err_msg=name)


@pytest.mark.slow
def test_the_level_is_full_unless_another_or_the_governor_is_asked_for(run, tmp_path):
    path = table(tmp_path / "a.csv", some())
    for level, wanted in ((None, 1), ("full", 1), ("trunk", 0)):
        status, out = run(path, level=level)
        assert status == 0
        assert (arrays_of(out / "a.npz")["level"] == wanted).all()
    status, out = run(path, level="auto")
    assert status == 0
    got = arrays_of(out / "a.npz")
    assert set(got["level"].tolist()) <= {-1, 0, 1}
    assert np.isfinite(got["forecast"]).all()
    status, _ = run(path, level="best")
    assert status == 1


@pytest.fixture
def shown(monkeypatch):
    """What labels were shown: (samples answered before, numbers of the samples, label)."""
    heard, answered = [], []
    label, settle = Controller.label, Controller.settle

    def listening(self, stream, indices, value):
        heard.append((len(answered), indices.tolist(), value))
        return label(self, stream, indices, value)

    def counting(self, estimate, time, values):
        answered.append(time)
        return settle(self, estimate, time, values)

    monkeypatch.setattr(Controller, "label", listening)
    monkeypatch.setattr(Controller, "settle", counting)
    return heard


@pytest.mark.parametrize("dated", [True, False])
def test_labels_are_shown_when_known_and_none_past_the_limit(run, tmp_path, shown, dated):
    times = stamps() if dated else [300 * n for n in range(ROWS)]
    path = table(tmp_path / "a.csv", some(), times)
    rows = [(90, 1, 0), (10, 1, 0), (20, 0, ""), (30, 1, 900), (80, 1, 0)]
    labels = tmp_path / "labels.csv"
    text = "time,label,duration\n" + "".join(f"{times[n]},{k},{d}\n" for n, k, d in rows)
    labels.write_text(text, encoding="utf-8-sig")  # as spreadsheets write it
    until = times[80].replace(tzinfo=UTC).timestamp() if dated else times[80]
    status, out = run(path, "--labels", labels, "--label-delay", 1500, "--label-until", until)
    assert status == 0
    # Five samples later; row n is answered after n others, and knows what is known by then.
    assert shown == [(15, [10], 1), (25, [20], 0), (35, [30, 31, 32, 33], 1), (85, [80], 1)]
    event = arrays_of(out / "a.npz")["event"]
    # The first is learned when what follows it has been seen.
    assert np.isnan(event[: 10 + LOOK]).all()
    assert ((event[10 + LOOK + 5 :] > 0) & (event[10 + LOOK + 5 :] < 1)).all()


def test_without_labels_there_is_no_event(run, tmp_path):
    _, out = run(table(tmp_path / "a.csv", some()))
    assert np.isnan(arrays_of(out / "a.npz")["event"]).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,label\n1,2\n", "line 2"),
        ("time,label\n1,1\nsoon,1\n", "line 3"),
        ("time,label\nnan,1\n", "line 2"),
        ("when,label\n1,1\n", "wanted time,label[,duration]"),
        ("time,label,duration\n1,1,-5\n", "line 2"),
        ("time,label,duration\n1,1,inf\n", "line 2"),
        ("time,label\n1\n", "line 2"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_label_file_is_refused_with_its_line(run, tmp_path, capsys, text, told):
    path, labels = table(tmp_path / "a.csv", some()), tmp_path / "labels.csv"
    if text is not None:
        labels.write_text(text)
    status, out = run(path, "--labels", labels)
    assert status == 1
    said = capsys.readouterr().err
    assert told in said
    assert "labels.csv" in said
    assert not out.exists()


def test_what_cannot_be_replayed_is_refused_with_the_reason(run, tmp_path, capsys):
    one = table(tmp_path / "x" / "a.csv", some())
    other = table(tmp_path / "y" / "a.csv.gz", some())
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("time,value\n1,2\n2,3,4\n3,4\n")
    empty, nothing = tmp_path / "empty.csv", tmp_path / "nothing"
    empty.write_text("time,value\n")
    nothing.mkdir()
    cases = [
        ((one, other), "same results: a"),
        ((one.parent, other.parent), "same results: a"),
        ((tmp_path / "missing.csv",), "missing.csv"),
        ((ragged,), "line 3"),
        ((empty,), "no "),
        ((nothing,), "no .csv"),
        ((one, "--speed", "0"), "--speed"),
        ((one, "--columns", "flow"), "'flow'"),
        ((one, "--horizon", "0"), "horizon_samples"),
    ]
    for args, told in cases:
        status, out = run(*args)
        assert status == 1, told
        assert told in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_the_horizon_is_as_asked_for(run, tmp_path):
    path = table(tmp_path / "a.csv", some())
    got = [arrays_of(run(path, "--horizon", 3, "--seed", seed)[1] / "a.npz") for seed in (1, 1)]
    assert got[0]["forecast"].shape == (ROWS, 3, 1)
    np.testing.assert_array_equal(got[0]["forecast"], got[1]["forecast"])


def test_a_replay_at_a_speed_waits_until_each_row_is_due():
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    wait = replay.paced(np.array([50.0, 52.0, 56.0, 57.0]), 2.0, lambda: now[0], sleep)
    for row in range(4):
        wait(row)
        now[0] += 1.5 if row == 2 else 0.1  # what the row takes
    np.testing.assert_allclose(slept, [0.9, 1.9])
    assert now[0] == pytest.approx(100.0 + 3.0 + 1.5 + 0.1)


def test_the_scorer_of_the_numenta_benchmark_reads_the_results(run, tmp_path):
    tools = Path(__file__).resolve().parents[2] / "shared" / "tools"
    if not (tools / "score_nab.py").is_file():
        pytest.skip(f"no score_nab.py in {tools}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(tools), *sys.path])
        scorer = importlib.import_module("score_nab")
    path = table(tmp_path / "data" / "real" / "a.csv", some(), stamps())
    _, out = run(path.parents[1])
    truth = scorer.FileTruth("real/a.csv", stamps(), [(str(START), str(stamps()[5]))])
    scores = scorer.load_scores(out, {"real/a.csv": truth})["real/a.csv"]
    np.testing.assert_allclose(scores, arrays_of(out / "real/a.npz")["strength"], atol=1e-6)
