"""The payloads that carry samples and feedback: JSON, or the same in MessagePack.

One sample, several of them, and feedback:

    {"stream": "bed1", "sequence": 7, "time": 12.5, "values": [0.1, null]}
    {"stream": "bed1", "sequence": 7, "time": [12.5, 12.6], "values": [[0.1, 2], [0.3, null]]}
    {"stream": "bed1", "time": 12.5, "sampling_rate_hz": 10, "values": [[0.1, 2], [0.3, null]]}
    {"stream": "bed1", "time": 12.5, "label": 1, "duration_s": 3}

`stream` may be left out where the topic says it, and `sequence` (of the first sample) where the
receiver is to count. `values` may be an object from channel names to values in place of a list;
a channel that it leaves out is missing. `null` is a missing value; times are in seconds.
`Sample.filled` is not carried.

A payload in MessagePack is known by its first byte, which no JSON begins with. It has the same
fields. Its `values` may also be binary: little-endian 32-bit floating-point numbers, row by row,
all channels of a row, NaN where one is missing.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from sensors.sample import Feedback, Item, Rejected, Sample, Stream

LIMIT = 1 << 20  # [bytes] of one payload, unless told otherwise
LARGEST = (1 << 63) - 1  # a sequence number fits 64 bits wherever it goes

# Outside JSON, but what other encoders write for values that are not finite.
NOT_FINITE = re.compile(rb"[\s:,\[]-?(?:NaN|nan|Infinity|inf)\b")

Values = list[float | None]


class _Payload(msgspec.Struct):
    """Any payload; `values` waits until its first characters have told its shape."""

    time: float | list[float]
    stream: str | None = None
    sequence: int | None = None
    values: msgspec.Raw = msgspec.Raw()
    sampling_rate_hz: float | None = None
    label: int | None = None
    duration_s: float = 0.0


class _Single(msgspec.Struct):
    """The commonest payload in JSON: one sample, its values in the order of the channels."""

    time: float
    values: Values
    stream: str | None = None
    sequence: int | None = None
    label: int | None = None


class _Reject(Exception):
    """Carries reason and detail out of a nested check; never leaves this module."""


class _Format:
    """How payloads of one kind are read."""

    def __init__(self, name: str, decoder: type):
        self.name = name
        self.payload = decoder(_Payload)
        self.row, self.rows = decoder(Values), decoder(list[Values])
        self.object = decoder(dict[str, float | None])
        self.objects = decoder(list[dict[str, float | None]])


_single = msgspec.json.Decoder(_Single)
_json = _Format("JSON in UTF-8", msgspec.json.Decoder)
_msgpack = _Format("MessagePack", msgspec.msgpack.Decoder)


def decode(
    payload: bytes | bytearray | memoryview | str,
    stream: Stream | None,
    *,
    others: Sequence[Stream] = (),
    sequence: int | Mapping[str, int] = 0,
    limit: int = LIMIT,
) -> list[Item]:
    """Make items of a payload, whatever it holds.

    Args:
        payload: What came: JSON in UTF-8, or MessagePack.
        stream: The stream that the payload is about if it names none; None if it has to.
        others: Further streams that it may name.
        sequence: The number of the first sample of a payload that brings none, or such numbers
            by name of stream: count on from the last `Sample.sequence`.
        limit: The longest payload that is looked at [bytes].

    Returns:
        The samples in the order of the payload, or the feedback. What is no good is a `Rejected`
        in its place: one row of several whose channels do not match, else the payload as a whole.
        Its reason is "too_long", "malformed" (neither), "types" (not the fields above),
        "not_finite", "unknown_stream", "channels", "lengths" (of times and rows) or "sequence".
        Nothing is raised for any payload.
    """
    name = stream.name if stream else ""
    try:
        if len(payload) > limit:
            raise _Reject("too_long", f"wanted at most {limit} bytes, got {len(payload)}")
        form = _form(payload)
        if form is _json and stream and (sample := _one(payload, stream, sequence)):
            return [sample]
        parsed = _parse(form, form.payload, payload)
        named = _named(parsed.stream, stream, others)
        name = named.name
        if parsed.label is not None:
            return [_feedback(parsed, name)]
        return _samples(form, parsed, named, sequence)
    except _Reject as reject:
        reason, detail = reject.args
        return [Rejected(name, reason, detail)]


def _one(
    payload: bytes | bytearray | memoryview | str,
    stream: Stream,
    sequence: int | Mapping[str, int],
) -> Sample | None:
    """Make a sample of the commonest payload, in a third of the time; None if it is any other."""
    try:
        parsed = _single.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    number, others = parsed.sequence, parsed.stream not in (None, stream.name)
    if others or parsed.label is not None or len(parsed.values) != len(stream.channels):
        return None
    if number is None:
        number = sequence if isinstance(sequence, int) else sequence.get(stream.name, 0)
    if not 0 <= number < LARGEST:
        return None
    # NumPy makes NaN of None.
    return Sample(stream.name, number, parsed.time, np.array(parsed.values, np.float64))


def encode_sample(sample: Sample) -> bytes:
    """Write one sample.

    Args:
        sample: Its values `[channels]`; NaN becomes null.

    Returns:
        The payload; `decode` makes an equal sample of it.

    Raises:
        ValueError: Time or a value is infinite, or time is NaN: JSON has no word for it.
    """
    return encode_samples([sample])


def encode_samples(samples: Iterable[Sample], *, binary: bool = False) -> bytes:
    """Write consecutive samples of one stream as one payload; see `encode_sample`.

    Args:
        samples: At least one.
        binary: In MessagePack, with values as 32-bit floating-point numbers, not as JSON.

    Raises:
        ValueError: There are none, they are not consecutive, or something is not finite.
    """
    samples = list(samples)
    if not samples:
        raise ValueError("a payload needs at least one sample, got none. Send nothing instead.")
    first = samples[0]
    for n, sample in enumerate(samples):
        if sample.stream != first.stream or sample.sequence != first.sequence + n:
            raise ValueError(
                f"samples of one payload must follow each other in one stream: wanted "
                f"{first.stream!r} number {first.sequence + n}, got {sample.stream!r} number "
                f"{sample.sequence}. Write them as payloads of their own."
            )
        if not np.isfinite(sample.time) or np.isinf(sample.values).any():
            raise ValueError(
                f"stream {sample.stream!r} number {sample.sequence}: time must be finite and "
                f"values finite or NaN, got time {sample.time} and values {sample.values}. "
                "NaN stands for a missing value."
            )
    single = len(samples) == 1
    fields = {
        "stream": first.stream,
        "sequence": first.sequence,
        "time": first.time if single else [sample.time for sample in samples],
    }
    rows = [sample.values for sample in samples]
    if binary:
        with np.errstate(over="ignore"):
            numbers = np.array(rows, "<f4")
        if np.isinf(numbers).any():
            raise ValueError(
                f"stream {first.stream!r} from number {first.sequence}: a value is larger than "
                "32 bits hold (3.4e38). Write it as JSON."
            )
        return msgspec.msgpack.encode(fields | {"values": numbers.tobytes()})
    values = rows[0].tolist() if single else [row.tolist() for row in rows]
    return msgspec.json.encode(fields | {"values": values})  # it writes NaN as null


def encode_feedback(feedback: Feedback) -> bytes:
    """Write feedback; `decode` makes an equal one of it."""
    return msgspec.json.encode(
        {
            "stream": feedback.stream,
            "time": feedback.time,
            "label": feedback.label,
            "duration_s": feedback.duration,
        }
    )


def _form(payload: Any) -> _Format:
    """MessagePack begins with the head of a map; JSON never with such a byte."""
    head = payload[0] if payload and not isinstance(payload, str) else 0
    return _msgpack if _is_map(head) else _json


def _is_map(head: int) -> bool:
    return 0x80 <= head <= 0x8F or head in (0xDE, 0xDF)


def _is_array(head: int) -> bool:
    return 0x90 <= head <= 0x9F or head in (0xDC, 0xDD)


def _parse(form: _Format, decoder: Any, payload: Any) -> Any:
    try:
        return decoder.decode(payload)
    except RecursionError:
        raise _Reject("malformed", f"wanted {form.name}, got one nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _Reject(*_why(form, error, payload)) from None


def _why(form: _Format, error: Exception, payload: Any) -> tuple[str, str]:
    text = payload.encode("utf-8", "replace") if isinstance(payload, str) else bytes(payload)
    start = ascii(text[:60].decode("utf-8", "replace"))
    if "out of range" in str(error) or form is _json and NOT_FINITE.search(text):
        return "not_finite", f"wanted finite numbers, null where a value is missing, got {start}"
    if isinstance(error, msgspec.ValidationError):
        return "types", f"{error}; got {start}"
    return "malformed", f"wanted {form.name}, got {start}: {error}"


def _named(name: str | None, stream: Stream | None, others: Sequence[Stream]) -> Stream:
    known = (stream, *others) if stream else tuple(others)
    if name is None and stream:
        return stream
    for candidate in known:
        if candidate.name == name:
            return candidate
    wanted = ", ".join(repr(candidate.name) for candidate in known[:5]) or "none is known"
    got = "no name" if name is None else repr(name[:60])
    raise _Reject("unknown_stream", f"wanted the name of a stream ({wanted}), got {got}")


def _feedback(parsed: _Payload, name: str) -> Feedback:
    if parsed.label not in (0, 1):
        raise _Reject("types", f"wanted label 1 (an event) or 0 (nothing), got {parsed.label}")
    if isinstance(parsed.time, list) or parsed.duration_s < 0:
        raise _Reject("types", "feedback needs one time and a duration_s that is not negative")
    if not (math.isfinite(parsed.time) and math.isfinite(parsed.duration_s)):
        raise _Reject("not_finite", "feedback needs a finite time and a finite duration_s")
    return Feedback(name, parsed.time, parsed.label, parsed.duration_s)


def _samples(
    form: _Format, parsed: _Payload, stream: Stream, sequence: int | Mapping[str, int]
) -> list[Item]:
    rows, single = _values(form, parsed.values, stream)
    if isinstance(rows, np.ndarray):
        single = len(rows) == 1 and not isinstance(parsed.time, list)
    times = _times(parsed, len(rows), single)
    first = parsed.sequence
    if first is None:
        first = sequence if isinstance(sequence, int) else sequence.get(stream.name, 0)
    if not 0 <= first <= LARGEST - len(rows):
        raise _Reject("sequence", f"wanted a number from 0 to {LARGEST}, got {first}")
    if form is _msgpack:  # JSON has no word for what is not finite
        _check_finite(times, rows)
    items: list[Item] = []
    for n, (time, row) in enumerate(zip(times, rows, strict=True)):
        if isinstance(row, str):
            items.append(Rejected(stream.name, "channels", row))
        else:
            # NumPy makes NaN of None.
            values = row if isinstance(row, np.ndarray) else np.array(row, np.float64)
            items.append(Sample(stream.name, first + n, time, values))
    return items


def _check_finite(times: list[float], rows: list[Values | str] | np.ndarray) -> None:
    good = [row for row in rows if not isinstance(row, str)]
    if not np.isfinite(times).all() or np.isinf(np.array(good, np.float64)).any():
        raise _Reject("not_finite", "wanted finite times, and values finite or NaN, got others")


def _values(
    form: _Format, raw: msgspec.Raw, stream: Stream
) -> tuple[list[Values | str] | np.ndarray, bool]:
    """Read the rows, a line of complaint in place of one that does not fit; is it a single one?"""
    head = bytes(memoryview(raw)[:64])
    if form is _json:
        head = head.translate(None, b" \t\r\n")
        outer, inner = head[:1] == b"{", head[1:2]
        several, named = inner in (b"[", b"{"), inner == b"{"
    elif head[:1] in (b"\xc4", b"\xc5", b"\xc6"):
        return _binary(msgspec.msgpack.decode(raw), stream), False
    else:
        outer = bool(head) and _is_map(head[0])
        at = {b"\xdc": 3, b"\xdd": 5}.get(head[:1], 1) if head and _is_array(head[0]) else len(head)
        inner = head[at] if at < len(head) else 0
        several, named = _is_map(inner) or _is_array(inner), _is_map(inner)
    if not head:
        raise _Reject("types", "wanted `values` (or `label`, for feedback), got neither")
    if outer:
        return [_by_channel(_parse(form, form.object, raw), stream)], True
    if several and named:
        return [_by_channel(row, stream) for row in _parse(form, form.objects, raw)], False
    if several:
        return [_in_order(row, stream) for row in _parse(form, form.rows, raw)], False
    return [_in_order(_parse(form, form.row, raw), stream)], True


def _binary(numbers: bytes, stream: Stream) -> np.ndarray:
    channels = len(stream.channels)
    if not numbers or len(numbers) % (4 * channels):
        raise _Reject(
            "channels",
            f"wanted rows of {channels} values of 4 bytes ({_list(stream.channels)}), got "
            f"{len(numbers)} bytes",
        )
    return np.frombuffer(numbers, "<f4").reshape(-1, channels).astype(np.float64)


def _in_order(row: Values, stream: Stream) -> Values | str:
    if len(row) != len(stream.channels):
        return f"wanted {len(stream.channels)} values ({_list(stream.channels)}), got {len(row)}"
    return row


def _by_channel(row: dict[str, float | None], stream: Stream) -> Values | str:
    strange = row.keys() - set(stream.channels)
    if strange:
        return f"wanted channels {_list(stream.channels)}, got {_list(sorted(strange))}"
    return [row.get(channel) for channel in stream.channels]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(ascii(name[:40]) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _times(parsed: _Payload, rows: int, single: bool) -> list[float]:
    time, rate = parsed.time, parsed.sampling_rate_hz
    if isinstance(time, list):
        if single or len(time) != rows:
            got = "one row of values" if single else f"{rows} rows of values"
            raise _Reject("lengths", f"wanted one time for each row, got {len(time)} for {got}")
        return time
    if single or rows == 1:
        return [time] * rows
    if rate is None or not 0 < rate < math.inf:
        raise _Reject(
            "types", f"several rows with one time need a sampling_rate_hz above 0, got {rate}"
        )
    times = [time + n / rate for n in range(rows)]
    if not math.isfinite(times[-1]):
        raise _Reject("not_finite", f"wanted finite times, got {rows} rows at {rate} Hz")
    return times
