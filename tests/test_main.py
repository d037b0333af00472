import json
import re
import subprocess
import sys

import numpy as np
import pytest

from adaptive import commands
from adaptive.__main__ import main, refusals
from adaptive.config import ConfigError
from sensors.mqtt import Refused

SMALL = """
[model]
memory_samples = 512
window_samples = 16
dim = 8
heads = 2
"""
ECG = '[[source]]\nkind = "simulated-ecg"\n'
COMMANDS = ("run", "check", "example", "replay", "explain", "bench", "cost", "export")


def adaptive(*arguments, timeout=150.0):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "adaptive", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def written(folder, text, name="my.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)])
def test_every_command_explains_itself(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: adaptive {' '.join(arguments)}".strip() in out
    if not arguments:
        assert all(name in out for name in COMMANDS)


def test_it_tells_its_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize("arguments", [["fly"], [], ["run", "--for-s", "soon"], ["check"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: adaptive" in capsys.readouterr().err


def test_the_example_can_be_written_checked_and_changed(tmp_path, capsys):
    assert main(["example"]) == 0
    path = written(tmp_path, capsys.readouterr().out)
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ecg: II, V1, 360 Hz, answered within 20 ms" in out
    assert "levels: mandatory, trunk, recall-512" in out
    assert "this configuration is sound" in out


ERRORS = {
    "no such file": ("run", "{folder}/nowhere.toml", "cannot be read"),
    "a mistake": ("check", "{folder}/wrong.toml", "Did you mean 'leads'?"),
    "brackets": ("check", "{folder}/brackets.toml", "write [[source]]"),
    "no recording": ("replay", "{folder}/nowhere.csv --save {folder}/out", "nowhere.csv"),
    "no such level": ("replay", "{folder}/x.csv --save {folder}/out --level high", "--level"),
    "no speed": ("replay", "{folder}/x.csv --save {folder}/out --speed 0", "--speed"),
    "few rows": ("cost", "{folder}/x.csv --horizon 9", "too few for a horizon of 9"),
    "no rows": ("cost", "--rows 0", "--rows must be at least 1"),
    "no level to export": ("export", "--save {folder} --level auto", "wanted trunk, recall"),
    "nothing to export": ("export", "--save {folder} --channels 0", "--channels must be"),
    "no samples": ("bench", "--samples 0", "--samples, --seeds and --workers must be at least 1"),
    "no contest": ("bench", "governor", "wanted --simulate, --live or --record"),
    "no case": ("bench", "governor --live --cases rain", "--cases: wanted quiet"),
    "no time": ("bench", "governor --live --seconds 0", "must be positive"),
    "no rate": ("bench", "ingest --rates 0", "must be positive"),
    "no message": ("bench", "ingest --rates 1 --seconds 1 --payload 64", "must be larger"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_mistake_ends_in_one_clear_line(what, tmp_path, capsys, monkeypatch):
    written(tmp_path, f"{ECG}lead = 2\n", "wrong.toml")
    written(tmp_path, '[source]\nkind = "file"\n', "brackets.toml")
    written(tmp_path, "time,a\n0,1\n1,2\n", "x.csv")
    command, arguments, words = ERRORS[what]
    assert main([command, *arguments.format(folder=tmp_path).split()]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_refusal_by_the_broker_is_told_without_a_traceback_and_a_bug_with_one(
    capsys, monkeypatch
):
    def fail(error):
        def run(args):
            raise error

        monkeypatch.setattr(commands, "run_agent", run)
        return main(["run"])

    refused = Refused("ward: the broker refused the subscription")
    both = ExceptionGroup("", [ExceptionGroup("", [refused]), ConfigError("a password is wrong")])
    assert fail(both) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: ward: the broker refused the subscription",
        "error: a password is wrong",
    ]
    assert refusals(ExceptionGroup("", [refused, KeyError()])) == []
    with pytest.raises(ExceptionGroup):
        fail(ExceptionGroup("", [KeyError("a bug")]))


@pytest.mark.slow
def test_it_runs_for_so_long_and_says_what_became_of_every_sample(tmp_path):
    path, summary = written(tmp_path, SMALL + ECG), tmp_path / "summary.json"
    done = adaptive("run", path, "--for-s", 1, "--summary", summary)
    assert done.returncode == 0, done.stderr
    ecg = json.loads(summary.read_text())["ecg"]
    shed = sum(ecg["shed"].values())
    assert ecg["received"] == ecg["full"] + ecg["mandatory"] + shed > 100
    identity = f"received +{ecg['received']} = {ecg['full']} full \\+ {ecg['mandatory']} mandatory"
    assert re.search(identity, done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert ecg["full"] > 0
    assert "started after" in done.stderr
    assert "models ready after" in done.stderr


@pytest.mark.slow
def test_answers_on_standard_output_are_there_alone(tmp_path):
    np.savez(tmp_path / "x.npz", time=np.arange(50.0), values=np.arange(100.0).reshape(50, 2))
    source = f'[[source]]\nkind = "file"\npath = "{tmp_path}/x.npz"\nspeed = 0\n'
    done = adaptive("run", written(tmp_path, f'{SMALL}{source}[[sink]]\nkind = "jsonl"\n'))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["sequence"] for answer in answers] == list(range(50))
    assert re.search("received +50 = ", done.stderr)


@pytest.mark.slow
def test_bench_prints_what_each_level_costs(tmp_path):
    path = written(tmp_path, SMALL)
    done = adaptive("bench", "--config", path, "--samples", 60)
    assert done.returncode == 0, done.stderr
    for level in ("mandatory", "trunk", "full", "a gradient step"):
        assert level in done.stdout


@pytest.mark.slow
def test_bench_measures_banks_growth_memory_and_the_start(tmp_path, monkeypatch, capsys):
    from adaptive import bench

    for name, few in (("BANKS", (1, 2, 3)), ("CHANNELS", (1, 2)), ("HORIZONS", (1, 2))):
        monkeypatch.setattr(bench, name, few)
    monkeypatch.setattr(bench, "MEMORIES", (512, 1024))
    monkeypatch.setattr(bench, "CALLS", 4)
    path = written(tmp_path, SMALL + '[[model.levels]]\nname = "trunk"\n')
    wanted = {
        "throughput": ("trunk", "3 streams", "state of a stream: "),
        "growth": ("channels", "512 1024"),
        "memory": ("compiled and used", "at most, while compiling"),
        "start": ("to be compiled", "on disk"),
    }
    for what, said in wanted.items():
        assert main(["bench", what, "--config", str(path), "--channels", "1"]) == 0
        out = capsys.readouterr().out
        for words in said:
            assert words in out
    assert bench.exponent((1, 2, 4), (3.0, 6.0, 12.0)) == pytest.approx(1.0)
    assert bench.exponent((1, 2, 4), (5.0, 5.0, 5.0)) == pytest.approx(0.0)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--driver", "aiomqtt", "--qos", "1", "--payload", "8")])
def test_bench_measures_an_agent_between_sensors_and_a_reader(tmp_path, more):
    load = ("--streams", 2, "--rates", "100", "--seconds", 1, "--deadline-ms", 1000)
    done = adaptive("bench", "ingest", "--config", written(tmp_path, SMALL), *load, *more)
    assert done.returncode == 0, done.stderr
    answered, late, in_time, *_ = done.stdout.split("│      100 │")[1].split("│")
    assert float(answered.strip(" %")) > 90
    p50, p99, p999 = (float(ms) for ms in late.split("/"))
    assert 0 < p50 <= p99 <= p999 < 5000
    assert float(in_time.strip(" %")) > 50


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["delta", "attention"])
def test_a_moment_is_explained_by_what_it_attended_to(encoder, tmp_path, capsys):
    rng, n = np.random.default_rng(0), np.arange(700)
    values = np.sin(2 * np.pi * n / 24) + rng.normal(0, 0.05, len(n))
    values[690:] += 3.0
    rows = "\n".join(f"{10.0 * k:g},{x:.4f},{rng.normal():.4f}" for k, x in enumerate(values))
    path = written(tmp_path, "time,flow,noise\n" + rows + "\n", "a.csv")
    config = written(tmp_path, f'{SMALL}encoder = "{encoder}"\n')
    assert main(["explain", str(path), "--at", "6935", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "6930, row 693: score 0.6" in out
    assert "stranger than 99" in out
    assert "unlike any" in out
    assert "rls-fast" in out
    assert "recall" in out
    assert f"({encoder})" in out
    # Only attention has weights on what it looked at.
    assert ("the encoder attended to tokens: " in out) == (encoder == "attention")
    for at, wanted in (("-1", "begins at 0 s"), ("noon", "a number or an ISO date")):
        assert main(["explain", str(path), f"--at={at}", "--config", str(config)]) == 1
        assert wanted in capsys.readouterr().err
