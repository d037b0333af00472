"""The README is true: its commands are CI's, its code runs, its options exist."""

import re
import tomllib
from pathlib import Path

import pytest

from adaptive import config
from adaptive.__main__ import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ci_calls_the_second_command_word_for_word():
    second = blocks("sh")[1].strip()
    assert "pytest" in second
    assert second in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_configuration_is_accepted():
    (text,) = blocks("toml")
    made = config.parse(tomllib.loads(text), "README.md")
    assert [stream.name for feed in made.feeds for stream in feed.source.streams] == ["bed-7"]
    assert made.agent.deadline_ms == 20


def test_every_command_and_option_shown_exists():
    for block in blocks("sh"):
        for line in block.splitlines():
            for command in re.findall(r"adaptive ((?:run|check|replay|bench)[^&|>#\n]*)", line):
                parser().parse_args(command.split())


@pytest.mark.slow
def test_the_python_runs(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "compiled full" in capsys.readouterr().out


def test_files_that_are_linked_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
