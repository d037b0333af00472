import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from sensors import plugins
from sensors.file import FileSource
from sensors.plugins import SOURCES

FILE = EntryPoint("file", "sensors.file:FileSource", SOURCES)
MQTT = EntryPoint("mqtt", "sensors.mqtt:MqttSource", SOURCES)


def test_a_plug_in_is_found_by_its_name():
    assert plugins.select(SOURCES, "file", [FILE, MQTT]) is FileSource


def test_the_same_plug_in_installed_twice_is_no_conflict():
    assert plugins.select(SOURCES, "file", [FILE, FILE]) is FileSource


def test_an_unknown_name_is_answered_with_the_nearest_and_all_others():
    with pytest.raises(LookupError, match="Did you mean 'file'") as error:
        plugins.select(SOURCES, "fiel", [FILE, MQTT])
    assert "Installed are file, mqtt" in str(error.value)


def test_without_any_plug_in_the_error_says_to_install_the_package():
    with pytest.raises(LookupError, match="pip install -e"):
        plugins.select(SOURCES, "file", [])


def test_two_plug_ins_of_one_name_are_an_error():
    other = EntryPoint("file", "elsewhere:FileSource", SOURCES)
    with pytest.raises(LookupError, match="got 2: elsewhere:FileSource, sensors.file:FileSource"):
        plugins.select(SOURCES, "file", [FILE, other])


@pytest.mark.parametrize("value", ["sensors.nowhere:Source", "sensors.file:Nothing"])
def test_a_plug_in_that_cannot_be_imported_names_what_failed(value):
    with pytest.raises(ImportError, match="Reinstall"):
        plugins.select(SOURCES, "x", [EntryPoint("x", value, SOURCES)])


def test_names_and_load_look_at_what_is_installed():
    # pytest itself is certainly there.
    installed = {point.name for point in entry_points(group="console_scripts")}
    assert "pytest" in installed
    assert set(plugins.names("console_scripts")) == installed
    assert callable(plugins.load("console_scripts", "pytest"))


def test_every_built_in_of_this_package_can_be_loaded():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    groups = project["project"]["entry-points"]
    for group in (plugins.SOURCES, plugins.TRANSFORMS):
        points = [EntryPoint(name, value, group) for name, value in groups[group].items()]
        for point in points:
            assert callable(plugins.select(group, point.name, points))
