import asyncio
import gzip
import time

import msgspec
import numpy as np
import pytest

from sensors import wire
from sensors.file import FileSource
from sensors.recordings import Annotation, read
from sensors.sample import Feedback, Rejected, Sample
from sensors.testing import check_source, virtual_run


@pytest.fixture
def write(tmp_path):
    def write(text, name="pump.csv"):
        path = tmp_path / name
        content = text.encode() if isinstance(text, str) else text
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


def replay(source):
    """Everything that the source yields, with the virtual times at which it did."""

    async def main():
        clock = asyncio.get_running_loop().time
        return [(clock(), item) async for item in source]

    return virtual_run(main())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["pump.csv", "pump.csv.gz"])
def test_a_table_is_read_with_its_missing_values(write, delimiter, name):
    text = "timestamp,flow [l/s],p\n1970-01-02 00:00:00,1.5,2\n1970-01-02T00:00:01.5Z,NA,\n"
    text += "1970-01-02T01:00:03+01:00,nan,null\n"
    recording = read(write(text.replace(",", delimiter), name))
    assert recording.name == "pump"
    assert recording.channels == ("flow [l/s]", "p")
    assert recording.units == ("l/s", "")
    np.testing.assert_array_equal(recording.time, [86400.0, 86401.5, 86403.0])
    np.testing.assert_array_equal(recording.values, [[1.5, 2], [np.nan, np.nan], [np.nan, np.nan]])
    assert recording.rejected == recording.notes == ()


@pytest.mark.parametrize(
    ("text", "times", "channels"),
    [
        ("value\n5\n6\n", [0, 1], ("value",)),
        ("t\n5\n6\n", [0, 1], ("t",)),
        ("No,x\n7,1\n8,2\n", [7, 8], ("x",)),
        (",x\n0,1\n1,2\n", [0, 1], ("x",)),
        ("time,x\n0.5,1\n0.25,2\n0.25,3\n", [0.5, 0.25, 0.25], ("x",)),
        ("Time [s],x\n0.5,1\n0.7,2\n", [0.5, 0.7], ("x",)),
        ("date,x\n0,1\n0,2\n", [0, 1], ("date", "x")),
        ("x,when\n0,2020-01-01\n0,2020-01-02\n", [0, 1], ("x",)),
    ],
)
def test_time_is_the_first_column_if_that_is_one_and_else_the_row_number(
    write, text, times, channels
):
    recording = read(write(text))
    np.testing.assert_array_equal(recording.time, times)
    assert recording.channels == channels


def test_the_time_may_be_named_and_a_text_column_that_may_be_it_is_mentioned(write):
    path = write("x,when\n3,1970-01-01\n5,1970-01-02\n")
    assert "name it as time_column" in read(path).notes[0]
    recording = read(path, time_column="when")
    np.testing.assert_array_equal(recording.time, [0.0, 86400.0])
    assert recording.channels == ("x",)


@pytest.mark.parametrize(
    ("text", "dated"),
    [
        ("time,x\n2020-01-01,1\n2020-01-02T03:00Z,2\n", True),
        ("time,x\n1577836800,1\n1577836801,2\n", False),
        ("x\n1\n2\n", False),
    ],
)
def test_a_recording_says_whether_its_times_were_dates(write, text, dated):
    assert read(write(text)).dated is dated


def test_the_dates_may_stand_in_a_column_that_is_named(write):
    path = write("x,when\n3,1970-01-01\n5,1970-01-02\n")
    assert not read(path).dated
    assert read(path, time_column="when", columns=["x"]).dated


def test_times_of_a_wfdb_record_are_no_dates(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    signal = np.arange(4.0)[:, None]
    wfdb.wrsamp("r", fs=4, units=["mV"], sig_name=["I"], p_signal=signal, write_dir=str(tmp_path))
    assert not read(tmp_path / "r").dated


def test_a_stated_rate_makes_seconds_of_row_numbers(write):
    recording = read(write("x\n1\n2\n3\n"), sampling_rate=4.0)
    np.testing.assert_array_equal(recording.time, [0.0, 0.25, 0.5])
    assert recording.sampling_rate == 4.0


def test_no_row_vanishes_in_silence(write):
    text = "t,x,y\n0,1,2\n1,1\n\n2,1,2,3\nnever,1,2\n,1,2\n4,5,6\n5,7"
    recording = read(write(text))
    np.testing.assert_array_equal(recording.values, [[1, 2], [5, 6]])
    assert [
        (one.reason, one.detail.split(":")[0].split(", ")[1]) for one in recording.rejected
    ] == [
        ("ragged", "line 3"),
        ("ragged", "line 5"),
        ("ragged", "line 9"),
        ("time", "line 6"),
        ("time", "line 7"),
    ]


def test_a_packed_file_that_is_cut_off_gives_what_came_before_the_cut(write, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{n},{x}" for n, x in enumerate(rng.normal(size=5000))]
    whole = write("t,x\n" + "\n".join(rows), "cut.csv.gz")
    whole.write_bytes(whole.read_bytes()[:20_000])
    recording = read(whole)
    assert 1000 < len(recording.values) < 5000
    assert recording.rejected[-1].reason == "truncated"


def test_cells_that_are_no_numbers_are_missing_and_noted(write):
    recording = read(write("t,x\n0,1\n1,oops\n2,inf\n3,4\n4,5\n"))
    np.testing.assert_array_equal(recording.values[:, 0], [1, np.nan, np.nan, 4, 5])
    assert recording.notes == (
        "column 'x': 2 cells are no finite numbers and count as missing, first 'oops' in line 3",
    )


def test_columns_of_text_are_left_out_with_a_note_unless_asked_for(write):
    path = write("t,x,kind\n0,1,good\n1,2,bad\n")
    recording = read(path)
    assert recording.channels == ("x",)
    assert "'kind' is left out" in recording.notes[0]
    with pytest.raises(ValueError, match="'kind' holds 'good', no number"):
        read(path, columns=["kind"])


def test_columns_come_in_the_order_asked_for_and_a_missing_one_names_the_nearest(write):
    path = write("t,flow,pressure\n0,1,2\n")
    np.testing.assert_array_equal(read(path, columns=["pressure", "flow"]).values, [[2, 1]])
    with pytest.raises(ValueError, match="no column 'presure'; did you mean 'pressure'"):
        read(path, columns=["presure"])
    with pytest.raises(ValueError, match="There are: t, flow, pressure"):
        read(path, time_column="stamp")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "a.csv", "empty file"),
        ("1,2\n3,4\n", "a.csv", "wanted a header"),
        ("t,x\na,b\nc,d\n", "a.csv", "no column of numbers"),
        ("1\n2\n", "a.txt", "wanted one of .csv"),
        ("no zip", "a.npz", "npz"),
        ("{}\n[", "a.jsonl", "got none"),
        ("no edf", "a.edf", "EDF"),
        ("no header", "a.hea", "WFDB"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(write, content, name, said):
    with pytest.raises(ValueError, match=said):
        read(write(content, name))


def test_a_file_that_is_plain_but_named_packed_says_so(tmp_path):
    (tmp_path / "a.csv.gz").write_text("t,x\n0,1\n")
    with pytest.raises(ValueError, match="take the .gz off"):
        read(tmp_path / "a.csv.gz")


def test_a_path_without_a_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no 999\.hea"):
        read(tmp_path / "999")


def test_arrays_are_read_one_after_another(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, train=np.ones((3, 2), np.float32), test=np.zeros((2, 2)), values=[1, 2, np.inf])
    recording = read(path, arrays=["train", "test"])
    np.testing.assert_array_equal(recording.values[:, 1], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(recording.time, range(5))
    assert recording.channels == ("value_1", "value_2")
    assert read(path, columns=["value"]).values.shape == (3, 1)
    assert "infinite" in read(path).notes[0]
    with pytest.raises(ValueError, match="no array 'tets'; did you mean 'test'"):
        read(path, arrays=["tets"])
    with pytest.raises(ValueError, match="same C"):
        read(path, arrays=["train", "values"])


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "m.npz", values=np.array([{}], object))
    with pytest.raises(ValueError, match="pickle"):
        read(tmp_path / "m.npz")


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz", "m.json.gz"])
def test_json_lines_are_read_as_on_the_wire(write, name):
    lines = [
        b"{",
        b'{"time":[1,2],"values":[{"a":1,"b":2},{"b":3}]}',
        b'{"time":1.5,"label":1,"duration_s":2}',
        b'{"time":3,"values":[1,2,3]}',
        b'{"time":4,"values":[7,8]}',
    ]
    recording = read(write(b"\n".join(lines), name))
    assert (recording.name, recording.channels) == ("m", ("a", "b"))
    np.testing.assert_array_equal(recording.time, [1, 2, 4])
    np.testing.assert_array_equal(recording.values, [[1, 2], [np.nan, 3], [7, 8]])
    assert recording.events == (Annotation(1.5, 1, 2.0),)
    assert [one.reason for one in recording.rejected] == ["malformed", "channels"]
    assert "line 4" in recording.rejected[1].detail


def test_an_edf_file_gives_the_signals_at_the_most_common_rate(tmp_path):
    pyedflib = pytest.importorskip("pyedflib", reason="needs the extra ecg")
    path = str(tmp_path / "night.edf")
    rates = {"EEG 1": 100, "EEG 2": 100, "temperature": 1}
    signals = [np.sin(np.arange(rate * 5) / 7) for rate in rates.values()]
    with pyedflib.EdfWriter(path, 3) as writer:
        for n, (label, rate) in enumerate(rates.items()):
            head = {"label": label, "sample_frequency": rate, "dimension": "uV"}
            limits = {"physical_min": -2.0, "physical_max": 2.0}
            digital = {"digital_min": -32768, "digital_max": 32767}
            writer.setSignalHeader(n, {**head, **limits, **digital})
        writer.writeSamples(signals)
        writer.writeAnnotation(1.5, 0.5, "spindle")
    recording = read(path)
    assert recording.channels == ("EEG 1", "EEG 2")
    assert recording.units == ("uV", "uV")
    assert recording.sampling_rate == 100.0
    assert "temperature" in recording.notes[0]
    np.testing.assert_allclose(recording.values[:, 0], signals[0], atol=1e-4)
    assert recording.time[-1] == pytest.approx(4.99)
    assert recording.events == (Annotation(1.5, "spindle", 0.5),)
    assert read(path, columns=["temperature"]).sampling_rate == 1.0
    with pytest.raises(ValueError, match="differ in their rates"):
        read(path, columns=["EEG 1", "temperature"])


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "1.hea").write_text("")
    monkeypatch.setitem(__import__("sys").modules, "wfdb", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "adaptive-attention\[ecg\]"'):
        read(tmp_path / "1")


@pytest.mark.slow
def test_a_wfdb_record_is_read_with_its_beats(data):
    pytest.importorskip("wfdb", reason="needs the extra ecg")
    recording = read(data / "ecg/mitdb/208")
    assert recording.values.shape == (650_000, 2)
    assert (recording.channels, recording.units) == (("MLII", "V1"), ("mV", "mV"))
    assert recording.sampling_rate == 360.0
    # The same samples as scipy's excerpt of this record, see the data's README.
    excerpt = read(data / "ecg/scipy_electrocardiogram_208_excerpt.npz", arrays=["ecg"])
    mine = recording.values[422_820 : 422_820 + 108_000, 0]
    np.testing.assert_allclose(mine, (excerpt.values[:, 0] - 1024) / 200)
    assert sum(event.label == "V" for event in recording.events) == 992  # PhysioNet's own count
    assert recording.events[1] == Annotation(46 / 360, "F")


@pytest.mark.slow
def test_every_recording_is_read_or_refused_with_a_reason(data):
    pytest.importorskip("wfdb", reason="needs the extra ecg")
    seen = 0
    for path in sorted(data.rglob("*")):
        if path.suffix in (".gz", ".csv", ".npz", ".hea"):
            arrays = None
            if path.suffix == ".npz":
                arrays = ["ecg"] if "electro" in path.name else ["train", "test"]
            recording = read(path, arrays=arrays)
            assert np.isfinite(recording.time).all(), path
            assert recording.values.shape == (len(recording.time), len(recording.channels)), path
            assert not recording.rejected, path
            seen += 1
        elif path.suffix in (".txt", ".md", ".json"):
            with pytest.raises(ValueError, match="wanted one of"):
                read(path)
    assert seen > 70


@pytest.mark.slow
def test_a_large_table_is_read_at_once(data):
    start = time.process_time()
    recording = read(data / "ett/ETTm1.csv.gz")
    assert time.process_time() - start < 10.0  # 1 s, 2 s under the shape checker
    assert recording.values.shape == (69_680, 7)
    assert set(np.diff(recording.time)) == {900.0}


def test_samples_come_at_the_pace_of_their_time_stamps_and_late_ones_delay_no_others(write):
    path = write("t,x\n10,0\n11,1\n11,2\n10.5,3\n14,4\n")
    got = replay(FileSource(str(path), speed=2.0))
    assert [(at, item.time, item.sequence) for at, item in got] == [
        (0.0, 10.0, 0),
        (0.5, 11.0, 1),
        (0.5, 11.0, 2),
        (0.5, 10.5, 3),
        (2.0, 14.0, 4),
    ]

    async def slow_reader():
        clock, times = asyncio.get_running_loop().time, []
        async for _ in FileSource(str(path)):
            times.append(clock())
            if len(times) == 1:
                await asyncio.sleep(2.5)
        return times

    assert virtual_run(slow_reader()) == [0.0, 2.5, 2.5, 2.5, 4.0]


def test_speed_nought_is_as_fast_as_possible_and_puts_out_a_row_for_each_row_in(write):
    path = write("t,x\n" + "".join(f"{n * 3600},{n}\n" for n in range(100)))
    got = replay(FileSource(str(path), stream="river", speed=0.0))
    assert {at for at, _ in got} == {0.0}
    assert [item.sequence for _, item in got] == list(range(100))
    assert {item.stream for _, item in got} == {"river"}


def test_annotations_come_as_feedback_after_their_delay(write):
    lines = [b'{"time":%d,"values":[0]}' % n for n in range(4)]
    lines += [b'{"time":0.5,"label":1}', b'{"time":3,"label":0,"duration_s":2}']
    path = write(b"\n".join(lines), "m.jsonl")
    for speed in (1.0, 0.0):
        got = replay(FileSource(str(path), speed=speed, label_delay_s=2.0))
        assert [item if isinstance(item, Feedback) else item.sequence for _, item in got] == [
            0,
            1,
            2,
            Feedback("m", 0.5, 1),
            3,
            Feedback("m", 3.0, 0, 2.0),
        ]
        assert [at for at, _ in got] == ([0, 1, 2, 2.5, 3, 5] if speed else [0] * 6)


def test_a_loop_goes_on_in_time_and_number(write):
    lines = [b'{"time":%d,"values":[%d]}' % (n, n) for n in (5, 6)] + [b'{"time":6,"label":1}']
    source = FileSource(str(write(b"\n".join(lines), "m.jsonl")), loop=True, label_delay_s=1.5)

    async def main():
        got = []
        async for item in source:
            got.append(item)
            if len(got) == 7:
                return got

    got = virtual_run(main())
    samples = [item for item in got if isinstance(item, Sample)]
    assert [item.sequence for item in samples] == list(range(len(samples)))
    assert [item.time for item in samples] == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert [item.time for item in got if isinstance(item, Feedback)] == [6.0, 8.0]


def test_rejected_rows_come_along_under_the_streams_name(write):
    got = replay(FileSource(str(write("t,x\n0,1\n1\n2,3\n"))))
    assert isinstance(got[0][1], Rejected)
    assert (got[0][1].stream, len(got)) == ("pump", 3)


def test_a_file_keeps_the_contract_of_a_source(write):
    path = write("t,x,y\n" + "".join(f"{n},{n},\n" if n % 3 else f"{n},1,2\n" for n in range(80)))
    check_source(lambda: FileSource(str(path)), repeatable=True)
    check_source(lambda: FileSource(str(path), loop=True, speed=0.0), repeatable=True, samples=200)


def test_beats_of_a_record_become_feedback(data):
    pytest.importorskip("wfdb", reason="needs the extra ecg")
    source = FileSource(str(data / "ecg/mitdb/208"), columns=("MLII",), speed=0.0)

    async def main():
        got = []
        async for item in source:
            if isinstance(item, Feedback):
                got.append(item)
                if len(got) == 4:
                    return got

    # Its first beats are F, V, N, F, V, N, ...: fusion beats are neither.
    assert [item.label for item in virtual_run(main())][:2] == [1, 0]
    assert source.streams[0].sampling_rate == 360.0


@pytest.mark.parametrize("fields", [{"speed": -1.0}, {"label_delay_s": float("nan")}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="negative"):
        FileSource("x.csv", **fields)


def test_the_source_is_made_of_its_table():
    table = {"path": "x.csv", "columns": ["a"], "arrays": [], "label_symbols": ["V", "F"]}
    assert msgspec.convert(table, FileSource).label_symbols == ("V", "F")


def test_a_recording_written_as_json_lines_reads_back(write):
    rng = np.random.default_rng(0)
    samples = [Sample("s", n, n / 7, rng.normal(size=3)) for n in range(50)]
    text = b"\n".join(wire.encode_sample(sample) for sample in samples)
    recording = read(write(text, "s.jsonl"))
    np.testing.assert_array_equal(recording.values, [sample.values for sample in samples])
    np.testing.assert_array_equal(recording.time, [sample.time for sample in samples])
