"""The scorers that the README's tables are made with are the reference."""

from pathlib import Path

import pytest

OURS = sorted(Path(__file__).parent.joinpath("benchmarks/scorers").glob("*.py"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_scorer_is_the_reference_byte_for_byte(path, data):
    reference = data.parent / "tools" / path.name
    if not reference.is_file():
        pytest.skip(f"no reference: {reference} is no file")
    assert path.read_bytes() == reference.read_bytes()


def test_all_that_the_tables_need_are_there():
    assert {path.stem for path in OURS} >= {
        "score_alarms", "score_anomaly", "score_events", "score_forecast", "score_nab", "scoring",
    }  # fmt: skip
