import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors import wire
from sensors.sample import Feedback, Rejected, Sample, Stream

BED = Stream("bed", ("II", "V1"), ("mV", "mV"), 250.0)
WARD = Stream("ward", ("temperature",), ("C",))

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.lists(finite | st.just(math.nan), min_size=2, max_size=2)
rows = st.lists(st.tuples(finite, values), min_size=1, max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda leaf: st.lists(leaf, max_size=4) | st.dictionaries(st.text(), leaf, max_size=4),
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "stream": anything | st.just("bed"),
        "sequence": anything,
        "time": anything | st.lists(finite, max_size=3),
        "values": anything | st.lists(values, max_size=3) | values,
        "sampling_rate_hz": anything,
        "label": anything | st.just(1),
        "duration_s": anything,
    },
)


def rejected(payload, **options):
    (item,) = wire.decode(payload, BED, **options)
    assert isinstance(item, Rejected)
    assert item.detail
    assert "\n" not in item.detail
    return item.reason


def assert_same(got, wanted):
    assert [type(item) for item in got] == [Sample] * len(wanted)
    for one, two in zip(got, wanted, strict=True):
        assert one[:3] == two[:3]
        np.testing.assert_array_equal(one.values, two.values)
        assert one.values.dtype == np.float64


@pytest.mark.slow
@given(rows, st.integers(0, 2**62))
def test_samples_come_back_as_they_were_written(rows, first):
    samples = [Sample("bed", first + n, t, np.array(v)) for n, (t, v) in enumerate(rows)]
    assert_same(wire.decode(wire.encode_samples(samples), BED), samples)
    assert_same(wire.decode(wire.encode_sample(samples[0]), BED), samples[:1])


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            finite, st.lists(st.floats(width=32, allow_infinity=False), min_size=2, max_size=2)
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**62),
)
def test_samples_come_back_from_binary_as_they_were_written_in_32_bits(rows, first):
    samples = [Sample("bed", first + n, t, np.array(v)) for n, (t, v) in enumerate(rows)]
    assert_same(wire.decode(wire.encode_samples(samples, binary=True), BED), samples)
    # What JSON can say MessagePack can, word for word.
    same = msgspec.msgpack.encode(msgspec.json.decode(wire.encode_samples(samples)))
    assert_same(wire.decode(same, BED), samples)


@given(finite, st.sampled_from([0, 1]), st.floats(0, allow_infinity=False))
def test_feedback_comes_back_as_it_was_written(time, label, duration):
    feedback = Feedback("bed", time, label, duration)
    assert wire.decode(wire.encode_feedback(feedback), BED) == [feedback]


@pytest.mark.slow
@given(st.binary() | st.text(), st.booleans())
def test_no_bytes_raise(payload, known):
    for item in wire.decode(payload, BED if known else None):
        assert isinstance(item, Sample | Feedback | Rejected)


@pytest.mark.slow
@given(anything | fields)
def test_no_json_raises_and_samples_are_sound(document):
    # json.dumps writes NaN and Infinity, which is part of what is tried here.
    for item in wire.decode(json.dumps(document), BED, others=[WARD]):
        assert isinstance(item, Sample | Feedback | Rejected)
        if isinstance(item, Sample):
            assert item.sequence >= 0
            assert math.isfinite(item.time)
            assert not np.isinf(item.values).any()
            assert item.values.shape == ({"bed": 2, "ward": 1}[item.stream],)


@given(st.binary(max_size=8), st.integers(0, 70), st.integers(0, 70))
def test_no_damaged_payload_raises(noise, begin, length):
    payload = b'{"stream":"bed","sequence":3,"time":[1,2],"values":[[1,null],[2.5e3,4]]}'
    wire.decode(payload[:begin] + noise + payload[begin + length :], BED)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"{", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b'{"time":1,"values":' + b"[" * 100_000, "malformed"),
        (b"[1,2]", "types"),
        (b'{"values":[1,2]}', "types"),
        (b'{"time":1}', "types"),
        (b'{"time":"2020-01-01","values":[1,2]}', "types"),
        (b'{"time":null,"values":[1,2]}', "types"),
        (b'{"time":1,"values":["1",2]}', "types"),
        (b'{"time":1,"values":[true,2]}', "types"),
        (b'{"time":1,"values":7}', "types"),
        (b'{"time":1,"values":[[1,2],3]}', "types"),
        (b'{"time":1,"values":[[1,2],[3,4]]}', "types"),  # no rate
        (b'{"time":1,"sampling_rate_hz":0,"values":[[1,2],[3,4]]}', "types"),
        (b'{"time":1,"sequence":1.5,"values":[1,2]}', "types"),
        (b'{"time":1,"label":2}', "types"),
        (b'{"time":1,"label":1,"duration_s":-1}', "types"),
        (b'{"time":[1],"label":1}', "types"),
        (b'{"time":1,"values":[1]}', "channels"),
        (b'{"time":1,"values":[]}', "channels"),
        (b'{"time":1,"values":[1,2,3]}', "channels"),
        (b'{"time":1,"values":{"II":1,"V9":2}}', "channels"),
        (b'{"time":1,"values":[1,1e999]}', "not_finite"),
        (b'{"time":1,"values":[1,-Infinity]}', "not_finite"),
        (b'{"time":1,"values":[NaN,1]}', "not_finite"),
        (b'{"time":1e999,"values":[1,2]}', "not_finite"),
        (b'{"time":1e308,"sampling_rate_hz":1e-308,"values":[[1,2],[1,2],[1,2]]}', "not_finite"),
        (b'{"time":1,"sequence":-1,"values":[1,2]}', "sequence"),
        (b'{"time":1,"sequence":9223372036854775808,"values":[1,2]}', "sequence"),
        (b'{"time":[1,2],"values":[[1,2]]}', "lengths"),
        (b'{"time":[1],"values":[1,2]}', "lengths"),
        (b'{"time":1,"stream":"ward","values":[1,2]}', "unknown_stream"),
    ],
)
def test_a_bad_payload_is_rejected_with_its_reason(payload, reason):
    assert rejected(payload) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"time": 1.0, "values": b"\0" * 12}, "channels"),
        ({"time": 1.0, "values": b""}, "channels"),
        ({"time": 1.0, "values": np.array([1, np.inf], "<f4").tobytes()}, "not_finite"),
        ({"time": 1.0, "values": [1.0, float("inf")]}, "not_finite"),
        ({"time": float("nan"), "values": [1.0, 2.0]}, "not_finite"),
        ({"time": 1.0, "values": np.zeros(4, "<f4").tobytes()}, "types"),  # two rows, no rate
        ({"time": [1.0], "values": np.zeros(4, "<f4").tobytes()}, "lengths"),
        ({"time": 1.0, "values": "12"}, "types"),
        ({"time": 1.0, "values": []}, "channels"),
        ({"time": 1.0}, "types"),
        ({"time": 1.0, "values": {"II": 1.0, "V9": 2.0}}, "channels"),
        ({"time": "now", "values": [1.0, 2.0]}, "types"),
        ({"stream": "other", "time": 1.0, "values": [1.0, 2.0]}, "unknown_stream"),
        ({"time": float("nan"), "label": 1}, "not_finite"),
        ({"time": 1.0, "label": 1, "duration_s": float("nan")}, "not_finite"),
        ({"time": 1.0, "sampling_rate_hz": np.inf, "values": [[1.0, 2.0]] * 2}, "types"),
    ],
)
def test_a_bad_payload_in_messagepack_is_rejected_with_its_reason(fields, reason):
    assert rejected(msgspec.msgpack.encode(fields)) == reason


def test_a_value_that_32_bits_do_not_hold_is_not_written():
    with pytest.raises(ValueError, match="larger than 32 bits hold"):
        wire.encode_samples([Sample("bed", 0, 1.0, np.array([1e39, 0.0]))], binary=True)


def test_messagepack_has_all_forms_of_json():
    for values in (
        [[0.5, None], [1.5, 2.0]],
        [{"II": 0.5}, {"V1": 2.0, "II": 1.5}],
        np.array([[0.5, np.nan], [1.5, 2.0]], "<f4").tobytes(),
    ):
        fields = {"time": 4.0, "sampling_rate_hz": 2.0, "values": values}
        wanted = [
            Sample("bed", 7, 4.0, np.array([0.5, np.nan])),
            Sample("bed", 8, 4.5, np.array([1.5, 2.0])),
        ]
        assert_same(wire.decode(msgspec.msgpack.encode(fields), BED, sequence=7), wanted)
    many = [[float(n), 0.0] for n in range(70_000)]  # with the longest head of an array
    fields = {"time": 0.0, "sampling_rate_hz": 1.0, "values": many}
    got = wire.decode(msgspec.msgpack.encode(fields), BED, limit=1 << 24)
    assert [item.values[0] for item in got[::10_000]] == list(range(0, 70_000, 10_000))
    one = {"time": 1.0, "values": {"V1": 3.0}}
    (got,) = wire.decode(msgspec.msgpack.encode(one), BED)
    np.testing.assert_array_equal(got.values, [np.nan, 3.0])
    # Extra bytes are damage, not another payload.
    assert rejected(msgspec.msgpack.encode(one) + b"x") == "malformed"


def test_a_payload_beyond_the_limit_is_not_even_parsed():
    assert rejected(b'{"time":1,"values":[1,2]}', limit=24) == "too_long"


def test_a_payload_without_a_number_is_counted_on_from_the_given_one():
    payload = b'{"time":[1,2],"values":[[1,2],[3,4]]}'
    assert [item.sequence for item in wire.decode(payload, BED, sequence=7)] == [7, 8]
    assert [item.sequence for item in wire.decode(payload, BED, sequence={"bed": 5})] == [5, 6]
    assert [item.sequence for item in wire.decode(payload, BED, sequence={})] == [0, 1]


def test_one_time_and_a_rate_give_the_times_of_all_rows():
    payload = b'{"time":10,"sampling_rate_hz":4,"values":[[1,2],[3,4],[5,null]]}'
    assert [item.time for item in wire.decode(payload, BED)] == [10.0, 10.25, 10.5]


def test_values_by_channel_come_in_the_order_of_the_stream_and_absent_ones_are_missing():
    one, two = wire.decode(b'{"time":[1,2],"values":[{"V1":2,"II":1},{"V1":3}]}', BED)
    np.testing.assert_array_equal(one.values, [1.0, 2.0])
    np.testing.assert_array_equal(two.values, [np.nan, 3.0])


def test_one_bad_row_does_not_cost_the_others_nor_their_numbers():
    payload = b'{"time":[1,2,3],"sequence":4,"values":[[1,2],[3],[5,6]]}'
    one, two, three = wire.decode(payload, BED)
    assert (one.sequence, two.reason, three.sequence) == (4, "channels", 6)


def test_several_streams_are_told_apart_by_name_and_an_unnamed_payload_needs_a_default():
    both = [BED, WARD]
    assert wire.decode(b'{"stream":"ward","time":1,"label":1}', None, others=both) == [
        Feedback("ward", 1.0, 1)
    ]
    (item,) = wire.decode(b'{"time":1,"label":1}', None, others=both)
    assert item.reason == "unknown_stream"
    assert "'bed', 'ward'" in item.detail


def test_what_json_cannot_say_is_not_written():
    with pytest.raises(ValueError, match="finite"):
        wire.encode_sample(Sample("bed", 0, 1.0, np.array([np.inf, 0.0])))
    with pytest.raises(ValueError, match="follow each other"):
        wire.encode_samples([Sample("bed", n, 1.0, np.zeros(2)) for n in (0, 2)])
    with pytest.raises(ValueError, match="at least one"):
        wire.encode_samples([])
