"""Energy, where the machine tells it: what its processors have taken, what its batteries have left.

References:
    Linux, Documentation/power/powercap/powercap.rst and ABI/testing/sysfs-class-power.
"""

import math
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
MICRO = 1e-6
HOUR = 3600.0  # [s]


class Battery(NamedTuple):
    """All batteries of the machine together."""

    left: float  # [J]
    power: float | None  # [W] taken from them; None: they do not say
    draining: bool  # the machine runs on them


class Rapl:
    """The counters of the processors' packages, which begin anew when they are full."""

    def __init__(self, root: Path = ROOT):
        """Find those that can be read.

        Args:
            root: Below which `sys` is looked for.
        """
        zones = sorted((root / "sys/class/powercap").glob("*"))
        # A package holds its cores, and the same one may be told of twice, by another way.
        self.zones = [
            zone
            for zone in zones
            if zone.name.count(":") == 1
            and not zone.name.startswith("intel-rapl-mmio:")
            and text(zone / "name").startswith("package")
            and number(zone / "energy_uj") is not None
        ]
        self._last: dict[Path, float] = {}
        self.joules()

    def joules(self) -> float | None:
        """What was taken since this was asked last [J]; None where it cannot be read."""
        total, known = 0.0, False
        for zone in self.zones:
            value = number(zone / "energy_uj")
            if value is None:
                continue
            known, before = True, self._last.get(zone, value)
            if value < before:
                before -= number(zone / "max_energy_range_uj") or before - value
            total += MICRO * (value - before)
            self._last[zone] = value
        return total if known else None


def battery(root: Path = ROOT) -> Battery | None:
    """Read what batteries have left; None where there is none that says it.

    Args:
        root: Below which `sys` is looked for.
    """
    left, power, draining, known = 0.0, 0.0, False, False
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        # What has the scope of a device is a mouse's or a keyboard's.
        if text(supply / "type") != "Battery" or text(supply / "scope") == "Device":
            continue
        if (energy := stored(supply)) is None:
            continue
        known, left = True, left + energy
        if text(supply / "status") == "Discharging":
            draining = True
            drawn = number(supply / "power_now")
            if drawn is None:
                drawn = product(number(supply / "current_now"), number(supply / "voltage_now"))
            power += MICRO * abs(drawn) if drawn is not None else math.nan
    if not known:
        return None
    return Battery(left, power if draining and power == power else None, draining)


def stored(supply: Path) -> float | None:
    """What is left in one battery [J], by its energy, its charge, or its share of the energy."""
    hours = number(supply / "energy_now")  # [uWh]
    if hours is None:
        hours = product(number(supply / "charge_now"), number(supply / "voltage_now"))
    if hours is None:
        percent, full = number(supply / "capacity"), number(supply / "energy_full")
        hours = percent * full / 100 if percent is not None and full is not None else None
    return None if hours is None or hours < 0.0 else MICRO * HOUR * hours


def product(charge: float | None, voltage: float | None) -> float | None:
    """Of two numbers in millionths, in millionths."""
    return None if charge is None or voltage is None else MICRO * charge * voltage


def text(path: Path) -> str:
    """What a file says; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> float | None:
    """The number that a file says; None if there is none."""
    try:
        value = float(text(path))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
