import dataclasses
import inspect
import re

import pytest

from adaptive import config
from adaptive.config import AgentSettings, ConfigError, PageSettings
from adaptive.decision import Settings
from adaptive.settings import Alarms, Model
from adaptive.sinks import MqttSink
from sensors import plugins
from sensors.mqtt import Broker, Topic

ECG = '[[source]]\nkind = "simulated-ecg"\n'
TRANSFORM = "\n[[source.transform]]\n"

# What the user wrote, and words that the message must have.
WRONG = {
    "unknown table": (f"[modle]\n{ECG}", ["unknown key 'modle'", "mean 'model'"]),
    "unknown key": (
        f"[model]\nmemory_sample = 512\n{ECG}",
        ["model:", "unknown key 'memory_sample'", "mean 'memory_samples'"],
    ),
    "unknown key of a source": (
        f"{ECG}sampling_rate = 250\n",
        ["source 1 (simulated-ecg)", "'sampling_rate'", "mean 'sampling_rate_hz'"],
    ),
    "key unlike any": (f"{ECG}xyzzy = 1\n", ["source 1", "'xyzzy'", "Known are", "leads"]),
    "unknown key of any source": (f"{ECG}criticl = true\n", ["'criticl'", "mean 'critical'"]),
    "too long a promise": (f"{ECG}firm = [1, 1000000000000]\n", ["k from 1 to 1024"]),
    "internal key": (f"{ECG}connection = 3\n", ["source 1", "unknown key 'connection'"]),
    "key of the second source": (
        f'{ECG}{ECG}stream = "b"\nlead = 2\n',
        ["source 2", "unknown key 'lead'", "mean 'leads'"],
    ),
    "wrong type": (f'[model]\ndim = "wide"\n{ECG}', ["model: dim", "int", "'wide'"]),
    "fraction for a count": (f"{ECG}leads = 1.5\n", ["source 1", "leads", "int", "1.5"]),
    "table that is none": (f"broker = 3\n{ECG}", ["broker", "wanted a table", "3"]),
    "source that is no array": ('[source]\nkind = "file"\n', ["source", "write [[source]]"]),
    "no source": ("[agent]\ndeadline_ms = 5\n", ["at least one [[source]]", "adaptive example"]),
    "missing kind": (
        '[[source]]\nstream = "a"\n',
        ["source 1", "kind", "simulated-ecg", "mqtt", "None"],
    ),
    "unknown kind": (
        '[[source]]\nkind = "simulated-egc"\n',
        ["source 1", "'simulated-egc'", "mean 'simulated-ecg'"],
    ),
    "unknown sink": (f'{ECG}[[sink]]\nkind = "jsnl"\n', ["sink 1", "'jsnl'", "mean 'jsonl'"]),
    "unknown transform": (
        f'{ECG}{TRANSFORM}kind = "band-pass"\n',
        ["source 1: transform 1", "'band-pass'", "mean 'bandpass'"],
    ),
    "missing key": ('[[source]]\nkind = "file"\n', ["source 1 (file)", "wanted the key 'path'"]),
    "missing key of a topic": (
        '[broker]\n[[source]]\nkind = "mqtt"\ntopics = [{ stream = "a" }]\n',
        ["source 1 (mqtt): topics 1", "wanted the key 'topic'", "got stream"],
    ),
    "missing broker": (
        '[[source]]\nkind = "mqtt"\ntopics = [{ topic = "a" }]\n',
        ["source 1 (mqtt)", "needs a [broker] table"],
    ),
    "missing broker of a sink": (f'{ECG}[[sink]]\nkind = "mqtt"\n', ["sink 1", "[broker]"]),
    "two streams of one name": (ECG + ECG, ["different names", "ecg twice", "Set stream"]),
    "stream with a wildcard": (
        '[broker]\n[[source]]\nkind = "mqtt"\ntopics = [{ topic = "ward/+/ecg" }]\n',
        ["must not", "'ward/+/ecg'", "Set stream"],
    ),
    "deadline of none": (f"[agent]\ndeadline_ms = 0\n{ECG}", ["agent", "deadline_ms", "above 0"]),
    "deadline that is not a number": (
        f"[agent]\ndeadline_ms = nan\n{ECG}",
        ["deadline_ms must be above 0", "nan"],
    ),
    "deadline of a source": (f"{ECG}deadline_ms = -1\n", ["source 1", "deadline_ms", "-1"]),
    "deadline that is true": (f"{ECG}deadline_ms = true\n", ["source 1", "deadline_ms", "True"]),
    "epsilon": (f"[governor]\nepsilon = 2.0\n{ECG}", ["governor", "epsilon", "2.0"]),
    "alarms of a source": (f"{ECG}alarms_per_day = -1\n", ["source 1", "alarms_per_day", "-1"]),
    "alarms": (f"[alarms]\nalarms_per_day = -1\n{ECG}", ["alarms_per_day", "at least 0", "-1"]),
    "memory": (f"[model]\nmemory_samples = 500\n{ECG}", ["power of two", "500"]),
    "gradient steps": (f"[model]\nlearn_every_samples = -1\n{ECG}", ["learn_every_samples", "-1"]),
    "port": (f"[broker]\nport = 0\n{ECG}", ["broker.port", "1 to 65535", "got 0"]),
    "sampling rate": (f"{ECG}sampling_rate_hz = 1\n", ["source 1", "at least 50", "1.0"]),
    "quality of service": (
        f'[broker]\n{ECG}[[sink]]\nkind = "mqtt"\nqos = 2\n',
        ["sink 1", "qos must be 0 or 1", "got 2"],
    ),
    "topic with other braces": (
        f'[broker]\n{ECG}[[sink]]\nkind = "mqtt"\ntopic = "a/{{strem}}"\n',
        ["sink 1", "{stream}", "'a/{strem}'"],
    ),
    "sink in no folder": (
        f'{ECG}[[sink]]\nkind = "jsonl"\npath = "/no/such/folder/x"\n',
        ["sink 1", "folder that exists", "'/no/such/folder/x'"],
    ),
    "recording that is not there": (
        '[[source]]\nkind = "file"\npath = "/no/such.csv"\n',
        ["source 1", "/no/such.csv", "no such file"],
    ),
    "band-pass above half the rate": (
        f'{ECG}{TRANSFORM}kind = "bandpass"\nlow_hz = 1\nhigh_hz = 400\n',
        ["source 1", "400 Hz", "800 Hz", "360 Hz"],
    ),
    "port of the page": (f"[page]\nport = 70000\n{ECG}", ["page", "0 for no page", "70000"]),
    "host of the page": (f'[page]\nhost = "a b"\n{ECG}', ["page", "host must be", "'a b'"]),
    "page for all without a token": (
        f'[page]\nhost = "0.0.0.0"\n{ECG}',
        ["page", "token must be set", "got none", '"0.0.0.0"', 'host = "127.0.0.1"'],
    ),
    "token that is no part of an address": (
        f'[page]\ntoken = "a&b"\n{ECG}',
        ["page", "token must be of letters"],
    ),
    "not TOML": ("[agent\n", ["not TOML", "line 1"]),
}


def load(folder, text):
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_is_refused_with_the_place_and_what_was_wanted(what, tmp_path):
    text, words = WRONG[what]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'my.toml'}: ")
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_a_band_pass_without_a_sampling_rate_is_refused(tmp_path):
    (tmp_path / "odd.csv").write_text("time,a\n0,1\n1,2\n5,3\n")
    text = f'[[source]]\nkind = "file"\npath = "{tmp_path}/odd.csv"\n{TRANSFORM}kind = "bandpass"\n'
    with pytest.raises(ConfigError, match=r"source 1: stream 'odd'.*sampling_rate_hz"):
        load(tmp_path, text + "low_hz = 1.0\nhigh_hz = 2.0\n")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml: cannot be read"):
        config.load(tmp_path / "nowhere.toml")
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="image.toml: cannot be read"):
        config.load(tmp_path / "image.toml")


def test_the_example_is_what_runs_without_a_configuration(tmp_path):
    built_in, written = config.load(None), load(tmp_path, config.example())
    assert built_in == written
    assert [raw.name for feed in built_in.feeds for raw, _ in feed.streams()] == ["ecg", "traffic"]
    assert built_in.feeds[0].deadline == 0.02
    assert built_in.feeds[1].deadline == 0.05


def test_what_the_example_has_in_comments_works_when_uncommented(tmp_path):
    head, comment = config.example().split("# Your own sensors over MQTT instead:\n")
    made = load(tmp_path, head + re.sub("^# ?", "", comment, flags=re.M))
    assert made.connection is not None
    assert made.feeds[2].source.connection is made.connection
    assert made.sinks[0].connection is made.connection
    assert made.feeds[2].streams()[0][0].name == "bed-7"


def test_keys_reach_the_parts_that_they_are_about(tmp_path):
    made = load(
        tmp_path,
        "[agent]\ndeadline_ms = 7\ncheckpoint_every_s = 5\n[model]\ndim = 16\n"
        "[alarms]\nalarms_per_day = 3\n[governor]\nguard_ms = 1\n"
        f'{ECG}leads = 3\n{TRANSFORM}kind = "bandpass"\nlow_hz = 0.5\nhigh_hz = 40\n'
        f'{TRANSFORM}kind = "features"\n',
    )
    assert (made.agent.deadline_ms, made.agent.checkpoint_every_s) == (7, 5)
    assert (made.model.dim, made.governor.guard_ms) == (16, 1)
    (feed,) = made.feeds
    assert (feed.alarms.alarms_per_day, feed.alarms.rest_samples) == (3, Alarms().rest_samples)
    assert (feed.deadline, feed.source.leads, len(feed.chain.transforms)) == (0.007, 3, 2)
    assert made.connection is None


def test_a_source_may_have_a_deadline_and_alarms_of_its_own(tmp_path):
    own = "deadline_ms = 5\nalarms_per_day = 100\n"
    text = f"[alarms]\nalarms_per_day = 3\nrest_samples = 7\n{ECG}{own}{ECG}stream = 'other'\n"
    first, second = load(tmp_path, text).feeds
    assert (first.deadline, second.deadline) == (0.005, AgentSettings().deadline_ms / 1e3)
    assert (first.alarms, second.alarms) == (Alarms(100, 7), Alarms(3, 7))


TABLES = [AgentSettings, PageSettings, Model, Alarms, Settings, Broker, Topic, MqttSink] + [
    plugins.load(group, name)
    for group in (plugins.SOURCES, plugins.TRANSFORMS, plugins.SINKS)
    for name in plugins.names(group)
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_key_of_the_configuration_is_explained(table):
    text = "\n".join(
        inspect.getdoc(cls) or "" for cls in table.__mro__ if dataclasses.is_dataclass(cls)
    )
    source = "\n".join(
        inspect.getsource(cls) for cls in table.__mro__ if dataclasses.is_dataclass(cls)
    )
    for field in dataclasses.fields(table):
        if not field.init or field.name == "connection":
            continue
        listed = re.search(rf"^ +{field.name}: \S", text, re.M)
        below = re.search(rf'^    {field.name}: .*\n    """\S', source, re.M)
        assert listed or below, f"{table.__name__}.{field.name} has no explanation"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_times_and_rates_have_their_unit_in_their_name(table):
    quantity = re.compile("rate|period|interval|duration|delay|timeout|deadline|frequency|expiry")
    unit = re.compile("_(s|ms|hz|samples|bpm|mv|bytes|h|day|min|per_[a-z]+)$")
    for field in dataclasses.fields(table):
        if field.type in (int, float, float | None) and quantity.search(field.name):
            assert unit.search(field.name), f"{table.__name__}.{field.name} has no unit"


def test_a_page_is_for_this_machine_alone_unless_told_otherwise(tmp_path):
    assert load(tmp_path, ECG).page == PageSettings(8765, "127.0.0.1", "")
    assert PageSettings().local
    assert PageSettings(host="::1").local
    assert PageSettings(host="localhost").local
    assert not PageSettings(host="192.0.2.7", token="secret").local
    assert PageSettings(port=0, host="0.0.0.0").port == 0  # no page, so no token


def test_processors_are_numbers_and_those_of_the_models_need_their_process():
    def made(**agent):
        return config.table(config.AgentSettings, agent, "x: agent")

    assert made(cpus=[0, 2], worker_cpus=[1]).cpus == (0, 2)
    with pytest.raises(ConfigError, match=r"x: agent: cpus: Expected `int`, got `str`"):
        made(cpus=["first"])
    with pytest.raises(ConfigError, match=r"worker_cpus must be empty .* got \[1\]; set cpus"):
        made(worker_cpus=[1], isolation="none")
