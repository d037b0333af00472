"""What processes hold is read from files like the kernel's, and once from the real ones."""

import logging
import os
from math import inf

import numpy as np
import pytest

from adaptive.decision import Settings
from adaptive.memory import GROWN, HIGH, Memory, held, limit
from adaptive.spending import Spending

STATUS = "Name:\tpython\nVmRSS:\t  500000 kB\nRssAnon:\t{} kB\nRssFile:\t  999 kB\nThreads:\t9\n"
V2 = "30 23 0:27 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"
V1 = "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
MB = 1_000_000


@pytest.fixture
def tree(tmp_path):
    """Makes files below a root, which it returns."""

    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


def holds(process, mb):
    return {f"proc/{process}/status": STATUS.format(int(mb * MB / 1024))}


def test_what_a_process_holds_apart_from_files_is_read(tree):
    root = tree(holds(7, 123) | {"proc/8/status": "RssAnon:\tmuch kB\n"})
    assert held(7, root) == pytest.approx(123 * MB, rel=1e-4)
    assert held(8, root) == held(9, root) == 0


def test_what_this_process_really_holds_rises_by_what_it_fills():
    before = held(os.getpid())
    filled = np.ones(40 * MB, np.uint8)
    assert held(os.getpid()) - before == pytest.approx(filled.nbytes, rel=0.1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, inf),
        ({"sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/memory.max": "5000\n"}, 5000),
        ({"sys/fs/cgroup/a/memory.max": "4000\n", "sys/fs/cgroup/memory.max": "5000\n"}, 4000),
        ({"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000\n"}, 3000),
        ({"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, inf),
        ({"sys/fs/cgroup/a/memory.max": "-1\n"}, inf),
    ],
)
def test_the_tightest_limit_of_all_groups_above_counts(tree, files, expected):
    groups = {"proc/self/cgroup": "9:memory:/a\n0::/a\n", "proc/self/mountinfo": V2 + V1}
    assert limit(tree(groups | files)) == expected


def test_a_start_anew_is_worth_it_where_the_models_process_has_grown(tree):
    me = os.getpid()
    memory = Memory(1000.0 * MB, tree(holds(me, 300) | holds(5, 400)))
    memory.look([5])
    assert memory.held == pytest.approx(700 * MB, rel=1e-4)
    assert not memory.high
    assert not memory.grown
    tree(holds(me, 650))
    memory.look([5])
    assert memory.high  # but it is this process that has grown
    assert not memory.grown
    tree(holds(me, 300) | holds(5, 400 + 1000 * GROWN + 210))
    memory.look([5])
    assert memory.high
    assert memory.grown
    tree(holds(6, 650))  # as large from the start: it needs so much
    memory.look([6])
    assert memory.high
    assert not memory.grown


def test_too_much_is_said_once_an_hour_and_what_to_do(tree, caplog):
    root = tree(holds(os.getpid(), 70) | holds(5, 10))
    spending = Spending(Settings(memory_mb=100.0), (), lambda: [5], root)
    with caplog.at_level(logging.WARNING):
        spending.remember(0.0)
        assert not caplog.records
        tree(holds(os.getpid(), 89))
        for now in (1.0, 2.0, 3600.0):
            spending.remember(now)
        assert len(caplog.records) == 1
        tree(holds(os.getpid(), 70) | holds(5, 10 + 100 * GROWN + 11))
        spending.remember(3602.0)
    first, second = (record.getMessage() for record in caplog.records)
    assert f"holds 99 MB, more than {100 * HIGH:.0f} % of the 100 that it may" in first
    assert "Allow more" in first
    assert "started anew at the next checkpoint" in second


def test_without_a_limit_nothing_is_ever_too_much(tree, caplog):
    spending = Spending(Settings(), (), tuple, tree(holds(os.getpid(), 10**6)))
    spending.remember(0.0)
    assert spending.memory.allowed == inf
    assert not spending.memory.high
    assert not caplog.records
