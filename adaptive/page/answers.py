"""What an operator answers to an alarm, from the page into the stream's feedback."""

from collections.abc import Mapping
from typing import Any

from adaptive.bank import Track
from sensors import wire
from sensors.sample import Feedback

LONGEST = 4096  # [bytes]


def take(tracks: Mapping[str, Track], payload: bytes) -> tuple[int, dict[str, Any]]:
    """Have a stream learn an answer, which is written as feedback is on the wire.

    Args:
        tracks: By the name of the stream.
        payload: As in `{"stream": "ecg", "time": 12.5, "label": 1}`.

    Returns:
        The status of HTTP; and what became of it with the stream's counts, or what is wrong.
    """
    streams = [track.stream for track in tracks.values()]
    (item, *_) = wire.decode(payload, None, others=streams, limit=LONGEST)
    if not isinstance(item, Feedback):
        detail = getattr(item, "detail", "wanted feedback with a label, got samples")
        missing = getattr(item, "reason", "") == "unknown_stream"
        return 404 if missing else 400, {"error": detail}
    track = tracks[item.stream]
    pending, wanted = track.pending, "wanted the time of a sample that is still remembered"
    if item.time > track.newest:
        return 404, {"error": f"{wanted}, got {item.time}, which is yet to come"}
    paired, twice = pending.paired, pending.duplicates
    track.feedback(item)
    if pending.paired == paired and pending.duplicates == twice:
        return 404, {"error": f"{wanted}, got {item.time}, at which there is none"}
    said = "had been said before" if pending.duplicates > twice else "counted"
    return 200, {"said": said, **track.counters.feedback}
