"""Plug-ins, found by the entry points of installed packages; the built-in ones are among them."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

SOURCES = "sensors.sources"
TRANSFORMS = "sensors.transforms"
SINKS = "adaptive.sinks"


def names(group: str) -> tuple[str, ...]:
    """List what is installed.

    Args:
        group: Of entry points: `SOURCES`, `TRANSFORMS`, `SINKS` or another.

    Returns:
        The names, sorted, each once.
    """
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """Import what an entry point names, usually a class.

    Args:
        group: Of entry points.
        name: In the group.

    Returns:
        The object.

    Raises:
        LookupError: Nothing of that name is installed, or two packages claim it.
        ImportError: It is installed, but cannot be imported.
    """
    return select(group, name, entry_points(group=group))


def select(group: str, name: str, installed: Iterable[EntryPoint]) -> Any:
    """Import the one of `installed` that has this name; for the rest see `load`."""
    installed = list(installed)
    # The same package seen twice, as when a checkout shadows what is installed, is no conflict.
    found = {point.value: point for point in installed if point.name == name}
    if not found:
        raise LookupError(_missing(group, name, sorted({point.name for point in installed})))
    if len(found) > 1:
        raise LookupError(
            f"{group}: wanted one plug-in {name!r}, got {len(found)}: {', '.join(sorted(found))}. "
            "Uninstall one of the packages that bring them."
        )
    (point,) = found.values()
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = point.dist.name if point.dist else "its package"
        raise ImportError(
            f"{group}: the plug-in {name!r} of {package} should be {point.value}, but importing "
            f"it failed: {error}. Reinstall {package}, with the extras that it asks for."
        ) from error


def _missing(group: str, name: str, known: list[str]) -> str:
    if not known:
        return (
            f"{group}: wanted the plug-in {name!r}, but none at all is installed, not even the "
            "built-in ones. They are found only when the package is: `pip install -e .`"
        )
    near = get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{group}: there is no plug-in {name!r}.{hint} Installed are {', '.join(known)}; "
        "others come with the packages that register them as entry points."
    )
