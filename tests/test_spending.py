"""Budgets of an agent: found in settings and files, and said when they are too small.

The files are made up; the clock is virtual.
"""

import asyncio
import logging
from collections import Counter

import pytest

from adaptive.bank import Bank
from adaptive.budget import QUOTA_MOST, described
from adaptive.controller import Controller
from adaptive.decision import Settings
from adaptive.energy import Battery
from adaptive.governor import Governor
from adaptive.quota import Quota
from adaptive.spending import EVERY, LASTS, Spending


def banks(many=2):
    made = [Bank(object.__new__(Controller), Governor()) for _ in range(many)]
    for bank in made:
        bank.governor.init([1e-3, 2e-3])
    return made


def made(tmp_path, **settings):
    some = banks()
    return Spending(Settings(**settings), some, root=tmp_path), some


def quota(tmp_path, content):
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text("0::/\n")
    (folder / "mountinfo").write_text("30 23 0:27 / /cg rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "cg").mkdir(exist_ok=True)
    (tmp_path / "cg/cpu.max").write_text(content)


def test_where_nothing_is_limited_governors_have_no_budget(tmp_path):
    spending, some = made(tmp_path)
    spending.take(0.0, None, None, None)
    assert [bank.governor.budget for bank in some] == [None, None]


def test_governors_share_what_settings_and_a_quota_allow(tmp_path):
    quota(tmp_path, "50000 100000")
    spending, some = made(tmp_path, cpu_share=0.3, power_w=5.0)
    assert {id(bank.governor.budget) for bank in some} == {id(spending.budget)}
    accounts = spending.budget.accounts
    assert accounts["cpu"].rate == 0.3
    assert accounts["energy"].rate == 5.0
    assert accounts["quota"].rate < 0.5
    assert spending.budget.window.limit == pytest.approx(QUOTA_MOST * 0.05)


def test_a_quota_that_changes_while_the_agent_runs_is_seen_within_about_a_second(
    tmp_path, virtual_time
):
    async def live():
        running = asyncio.create_task(spending.run())
        await asyncio.sleep(0.1)
        seen = [some[0].governor.budget]
        quota(tmp_path, "20000 100000")
        await asyncio.sleep(2 * EVERY + 0.1)
        seen.append(some[0].governor.budget.window.limit)
        quota(tmp_path, "max 100000")
        await asyncio.sleep(2 * EVERY + 0.1)
        seen.append(some[0].governor.budget)
        running.cancel()
        return seen

    spending, some = made(tmp_path)
    assert virtual_time.run(live()) == [None, pytest.approx(QUOTA_MOST * 0.02), None]


def test_what_it_takes_to_make_the_models_anew_is_of_no_budget(tmp_path, virtual_time):
    spending, _ = made(tmp_path, cpu_share=0.5)
    spent = [0.0]
    spending.budget.meter = lambda: spent[0]

    async def main():
        ready = asyncio.Event()
        running = asyncio.create_task(spending.run(ready))
        await asyncio.sleep(5.0)
        spent[0] += 6.0  # at first
        ready.set()
        await asyncio.sleep(1.1)
        ready.clear()
        for _ in range(5):  # and when they were made anew
            spent[0] += 1.0
            await asyncio.sleep(1.0)
        ready.set()
        await asyncio.sleep(1.1)
        cheap = spending.budget.price
        spent[0] += 1.0
        await asyncio.sleep(1.1)
        running.cancel()
        return cheap

    assert virtual_time.run(main()) == 0.0
    assert spending.budget.accounts["cpu"].spent == pytest.approx(1.0)
    assert spending.budget.price > 0.0


def test_a_window_outlives_readings_of_the_same_quota(tmp_path):
    spending, _ = made(tmp_path)
    spending.take(0.0, None, Quota(0.05, 0.1), None)
    window = spending.budget.window
    spending.take(1.0, None, Quota(0.05, 0.1), None)
    assert spending.budget.window is window


def test_what_a_battery_has_left_is_spread_over_the_time_that_it_must_last(tmp_path):
    spending, some = made(tmp_path, battery_hours=10.0)
    left = 36_000.0
    spending.take(0.0, None, None, Battery(left, None, False))
    assert some[0].governor.budget is None  # it is being charged
    for hours in (0.0, 4.0, 8.0):
        spending.take(100.0 + 3600 * hours, None, None, Battery(left, None, True))
        assert spending.budget.accounts["energy"].rate == pytest.approx(left / (10 - hours) / 3600)
    spending.take(100.0 + 3600 * 20, None, None, Battery(left, None, True))
    assert spending.budget.accounts["energy"].rate == pytest.approx(left / 60)
    assert some[0].governor.budget is spending.budget
    spending.take(1e6, None, None, Battery(left, None, False))
    assert some[0].governor.budget is None


def test_a_battery_never_allows_more_than_the_power_that_is_set(tmp_path):
    spending, _ = made(tmp_path, battery_hours=1.0, power_w=2.0)
    spending.take(0.0, None, None, Battery(36_000.0, None, True))
    assert spending.budget.accounts["energy"].rate == 2.0


@pytest.mark.parametrize("by", ["processors", "battery"])
def test_what_is_measured_is_what_was_spent(tmp_path, by):
    spending, _ = made(tmp_path, power_w=10.0)
    spending.budget.meter = lambda: 0.0
    for n in range(1, 41):
        counted = 4.0 * EVERY if by == "processors" else 99.0
        battery = Battery(1e6, 4.0, True) if by == "battery" else None
        spending.take(EVERY * n, counted, None, battery)
    assert spending.budget.accounts["energy"].spent == pytest.approx(4.0 * 39 * EVERY, rel=0.05)


def test_without_a_battery_the_setting_is_said_to_do_nothing(tmp_path, caplog):
    made(tmp_path, battery_hours=3.0)
    assert "wanted a battery that says what energy it has left, got none" in caplog.text


def test_a_budget_that_is_too_small_for_all_samples_is_said_once_in_a_while(tmp_path, caplog):
    spending, some = made(tmp_path, cpu_share=0.1)
    spending.budget.meter = iter(range(1000)).__next__  # a second, each time
    said = Counter()
    with caplog.at_level(logging.WARNING):
        for n in range(240):
            some[0].left_out += 5 * (n > LASTS or n < 3)  # what waited at the start is not enough
            spending.take(EVERY * n, None, None, None)
            said[int(EVERY * n / 60)] = len(caplog.records)
            assert caplog.records or n < 2 * LASTS
            assert not caplog.records or n >= 2 * LASTS
    assert [said[k] for k in range(2)] == [1, 2]
    assert "is too small: for 5 s samples" in caplog.records[0].getMessage()
    assert "5 in the last 0.5 s" in caplog.records[-1].getMessage()
    assert "left out of the model's memory" in caplog.records[-1].getMessage()
    assert "price" in described(spending.budget)
