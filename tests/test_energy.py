"""Energy is read from trees of files like the kernel's."""

import pytest

from adaptive.energy import Battery, Rapl, battery


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


@pytest.fixture
def powercap(tmp_path):
    def make(zone, **files):
        return write(tmp_path / "sys/class/powercap" / zone, **files)

    return make


@pytest.fixture
def supply(tmp_path):
    def make(name, **files):
        return write(tmp_path / "sys/class/power_supply" / name, **files)

    return make


def test_what_packages_have_taken_is_added_up_and_parts_and_doubles_are_not(tmp_path, powercap):
    one = powercap("intel-rapl:0", name="package-0", energy_uj=1_000_000)
    two = powercap("intel-rapl:1", name="package-1", energy_uj=5_000_000)
    rest = [
        powercap("intel-rapl:0:0", name="core", energy_uj=0),
        powercap("intel-rapl-mmio:0", name="package-0", energy_uj=0),
        powercap("intel-rapl:2", name="psys", energy_uj=0),
    ]
    meter = Rapl(tmp_path)
    assert meter.joules() == 0.0
    write(one, energy_uj=1_500_000)
    write(two, energy_uj=7_000_000)
    for zone in rest:
        write(zone, energy_uj=99_000_000)
    assert meter.joules() == pytest.approx(2.5)
    assert meter.joules() == 0.0


def test_a_counter_that_was_full_goes_on(tmp_path, powercap):
    zone = powercap(
        "intel-rapl:0", name="package-0", energy_uj=9_000_000, max_energy_range_uj=10_000_000
    )
    meter = Rapl(tmp_path)
    write(zone, energy_uj=500_000)
    assert meter.joules() == pytest.approx(1.5)


@pytest.mark.parametrize("content", ["", "many", "nan", "inf"])
def test_counters_that_make_no_sense_are_none(tmp_path, powercap, content):
    powercap("intel-rapl:0", name="package-0", energy_uj=content)
    assert Rapl(tmp_path).joules() is None


def test_without_the_files_nothing_is_known(tmp_path):
    assert Rapl(tmp_path).joules() is None
    assert battery(tmp_path) is None


def test_batteries_are_added_up_but_not_those_of_a_mouse(tmp_path, supply):
    full = {"type": "Battery", "status": "Discharging"}
    supply("BAT0", **full, energy_now=20_000_000, power_now=6_000_000)
    supply("BAT1", **full, charge_now=2_000_000, voltage_now=10_000_000, current_now=-300_000)
    supply("mouse", **full, scope="Device", energy_now=1_000_000)
    supply("AC", type="Mains", online=0)
    found = battery(tmp_path)
    assert found.left == pytest.approx(3600 * (20 + 20))
    assert found.power == pytest.approx(6 + 3)
    assert found.draining


def test_a_share_of_a_known_energy_will_do(tmp_path, supply):
    supply("BAT0", type="Battery", status="Charging", capacity=50, energy_full=40_000_000)
    assert battery(tmp_path) == Battery(pytest.approx(3600 * 20), None, False)


def test_a_battery_that_does_not_say_what_it_gives_still_says_what_is_left(tmp_path, supply):
    supply("BAT0", type="Battery", status="Discharging", energy_now=10_000_000)
    assert battery(tmp_path) == Battery(pytest.approx(36_000), None, True)


@pytest.mark.parametrize("content", ["", "half", "-5"])
def test_a_battery_that_says_nothing_of_use_is_none(tmp_path, supply, content):
    supply("BAT0", type="Battery", status="Discharging", energy_now=content, capacity=50)
    assert battery(tmp_path) is None
