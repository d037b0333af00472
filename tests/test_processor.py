import logging
import os
import subprocess
import sys
import threading

import pytest

from adaptive import processor
from adaptive.isolation import Process
from adaptive.processor import HAVE

several = pytest.mark.skipif(len(HAVE) < 2, reason="needs two processors")


@pytest.fixture(autouse=True)
def as_before():
    """Nothing of it outlives a test."""
    before = os.sched_getaffinity(0)
    yield
    processor.confine(sorted(before))


def test_processors_that_are_not_there_are_refused():
    absent = HAVE[-1] + 1000
    with pytest.raises(
        ValueError, match=rf"may use, which are \[.*got .*\[{absent}\] is not there"
    ):
        processor.check([HAVE[0], absent])
    processor.check(HAVE)
    processor.check([])


def test_a_system_that_lets_nobody_choose_says_so(monkeypatch):
    monkeypatch.setattr(processor, "HAVE", [])
    with pytest.raises(ValueError, match="does not let a program choose"):
        processor.check([0])
    processor.check([])


@several
def test_all_threads_go_where_they_are_told():
    over, seen = threading.Event(), []

    def look():
        over.wait()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=look)
    thread.start()  # before
    processor.confine([HAVE[1]])
    over.set()
    thread.join()
    assert seen == [os.sched_getaffinity(0)] == [{HAVE[1]}]


def test_without_any_named_it_is_left_to_the_system():
    before = os.sched_getaffinity(0)
    processor.confine([])
    with processor.confined([]):
        assert os.sched_getaffinity(0) == before


@several
def test_a_process_is_on_its_own_processors_from_the_first_moment():
    before, code = os.sched_getaffinity(0), "import os; print(sorted(os.sched_getaffinity(0)))"
    with processor.confined([HAVE[1]]):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == f"[{HAVE[1]}]"
    assert os.sched_getaffinity(0) == before


@several
def test_the_models_run_where_they_are_told():
    process = Process([HAVE[1]])
    try:
        assert os.sched_getaffinity(process.child.pid) == {HAVE[1]}
    finally:
        process.close(0.0)


def test_who_goes_first_hands_the_interpreter_on_sooner_and_only_then():
    before = sys.getswitchinterval()
    with processor.first(False):
        assert sys.getswitchinterval() == pytest.approx(processor.TURN)
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert sys.getswitchinterval() == before


def test_real_time_that_is_refused_is_said_in_the_log(monkeypatch, caplog):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with caplog.at_level(logging.WARNING), processor.first(True):
        pass
    assert caplog.text.count("refuses it ([Errno 1] Operation not permitted)") == 1


def test_real_time_is_of_the_thread_alone_and_ends(caplog):
    seen = []
    with processor.first(True):
        if "refuses it" in caplog.text:
            pytest.skip("this system refuses it")
        assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
    assert seen == [os.SCHED_OTHER]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
