"""What befalls a machine while something is measured on it."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from adaptive import disturbances
from adaptive.disturbances import Impossible, home, quota, stopped, stress


@pytest.fixture
def child():
    """A process that does nothing."""
    made = subprocess.Popen(["sleep", "60"])
    yield made
    made.kill()
    made.wait()


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def children():
    """The processes of the group that `work` leads."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"sleep\x0061" in (path / "cmdline").read_bytes():
                found.add(path.name)
    return found


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(disturbances.shutil, "which", lambda name: None)
    with pytest.raises(Impossible, match="not installed"), stress("--cpu", "1"):
        pytest.fail("it is not installed")


def test_what_does_not_run_is_said(monkeypatch):
    monkeypatch.setattr(disturbances.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(Impossible, match="ended with code 1"), stress("--cpu", "1"):
        pytest.fail("it does not run")


@pytest.mark.slow
def test_other_work_ends_whatever_happens(monkeypatch, tmp_path):
    program = tmp_path / "work"
    program.write_text("#!/bin/sh\nsleep 61 &\nsleep 61\n")
    program.chmod(0o755)
    monkeypatch.setattr(disturbances.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(disturbances, "WARMING", 0.2)
    mine = set()
    with contextlib.suppress(KeyboardInterrupt), stress():
        mine = children()
        raise KeyboardInterrupt
    assert len(mine) == 2
    assert not mine & children()


def test_a_stopped_process_goes_on_whatever_happens(child):
    with contextlib.suppress(ZeroDivisionError), stopped(child.pid):
        while state(child.pid) != "T":
            pass
        raise ZeroDivisionError
    while state(child.pid) == "T":
        pass


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (1, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "25000"}),
        (2, {"cpu.max": "25000 100000"}),
    ],
)
def test_a_quota_is_of_a_group_of_its_own_and_all_go_back(version, files, tmp_path, monkeypatch):
    monkeypatch.setattr(disturbances, "home", lambda: (tmp_path, version))
    with contextlib.suppress(ZeroDivisionError), quota([17], 0.25):
        (group,) = tmp_path.iterdir()
        assert {p.name: p.read_text() for p in group.iterdir()} == files | {"cgroup.procs": "17"}
        for path in group.iterdir():
            path.unlink()  # files of a real group vanish with it
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.procs"]
    assert (tmp_path / "cgroup.procs").read_text() == "17"


def test_a_quota_that_is_not_permitted_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(disturbances, "home", lambda: (tmp_path / "not there", 1))
    with pytest.raises(Impossible, match="not permitted"), quota([17], 0.25):
        pytest.fail("it is not permitted")


def test_a_real_quota_holds_the_process_and_is_gone_afterwards(child):
    groups = Path(f"/proc/{child.pid}/cgroup")
    before = groups.read_text()
    try:
        parent, _ = home()
        with quota([child.pid], 0.5) as throttled:
            assert throttled().startswith("throttled in 0 of ")
            assert "adaptive-bench-" in groups.read_text()
    except Impossible as error:
        pytest.skip(str(error))
    assert groups.read_text() == before
    assert not list(parent.glob("adaptive-bench-*"))
