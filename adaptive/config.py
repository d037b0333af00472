"""One TOML file -> frozen dataclasses: validated, before anything starts.

Every table is the dataclass of the thing that it configures, and its keys are that class's fields;
so the docstrings are the manual, and a plug-in's options need no code here.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec

from adaptive.backlog import Rank
from adaptive.decision import Settings
from adaptive.settings import Alarms, Model
from sensors import plugins
from sensors.mqtt import Broker, Connection
from sensors.sample import Stream
from sensors.transforms import Chain

T = TypeVar("T")
TABLES = ("agent", "model", "alarms", "governor", "page", "broker", "source", "sink")
COMMON = ("deadline_ms", "transform")  # keys of any source, with those of Alarms and Rank


class ConfigError(ValueError):
    """The configuration cannot be used; the message says where, what was wanted, and what came."""


@dataclass(frozen=True)
class AgentSettings:
    """The [agent] table."""

    deadline_ms: float = 50.0
    """From a sample's arrival to its answer; a source may set its own."""
    checkpoint_path: str = ""
    """A file for the state; empty: nothing outlives a restart."""
    checkpoint_every_s: float = 60.0
    """Between two checkpoints; there is one more at the end."""
    hang_s: float = 10.0
    """A process of models that owes an answer so long hangs; like one that has died it is started
    anew, from the last checkpoint, while mandatory answers go on."""
    isolation: str = "process"
    """Where models run: in a `process` of their own, so that answers never wait for them; or
    `none`, in the agent's, which saves memory where deadlines are loose."""
    cpus: tuple[int, ...] = ()
    """The processors that the agent runs on, by number, as in `[0]`; empty: left to the system."""
    worker_cpus: tuple[int, ...] = ()
    """Those of the models' process; empty: the agent's. One of its own for each keeps either from
    waiting for the other, where there are enough."""
    realtime: bool = False
    """Whether the agent's event loop goes before all that is not in real time itself (SCHED_FIFO),
    by which samples are taken in and answered at once on a machine that is busy with other things.
    It takes a right that few have (CAP_SYS_NICE); refused, it is said in the log and left."""

    def __post_init__(self) -> None:
        if self.isolation not in ("process", "none"):
            raise ValueError(f'isolation must be "process" or "none", got {self.isolation!r}')
        if self.worker_cpus and self.isolation == "none":
            raise ValueError(
                'worker_cpus must be empty where isolation = "none", because models then run in '
                f"the agent's process, got {list(self.worker_cpus)}; set cpus in its place"
            )
        for name in ("deadline_ms", "checkpoint_every_s", "hang_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class PageSettings:
    """The [page] table: where `adaptive run` shows what it does, to a browser."""

    port: int = 8765
    """Where it is served; 0: no page."""
    host: str = "127.0.0.1"
    """The address that is listened on. Any but that of this machine alone lets others look and
    label alarms, and takes a token."""
    token: str = ""
    """What whoever looks has to know: the first time the address ends with `?token=` and it. Empty:
    nothing, where only this machine is listened to."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be 1 to 65535, or 0 for no page, got {self.port}")
        if not re.fullmatch(r"[\w.:-]+", self.host, re.ASCII):
            raise ValueError(f"host must be an address or name of this machine, got {self.host!r}")
        if not re.fullmatch(r"[\w.~-]*", self.token, re.ASCII):
            raise ValueError(
                "token must be of letters, digits and . _ ~ - alone, because it is part of an "
                "address, got others"
            )
        if self.port and not self.local and not self.token:
            raise ValueError(
                f"token must be set where others can reach the page, got none with host = "
                f'"{self.host}". Set a long random one, or host = "127.0.0.1"'
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Feed(NamedTuple):
    """A source, and what happens to its samples before they are scored."""

    source: Any
    chain: Chain
    deadline: float  # [s]
    alarms: Alarms
    rank: Rank

    def streams(self) -> list[tuple[Stream, Stream]]:
        """Each stream as it comes, and as it is behind the transforms."""
        return [(raw, self.chain.output(raw)) for raw in self.source.streams]


class Config(NamedTuple):
    """All that an agent is made of."""

    agent: AgentSettings
    model: Model
    governor: Settings
    connection: Connection | None
    feeds: tuple[Feed, ...]
    sinks: tuple[Any, ...]
    page: PageSettings = PageSettings()


def example() -> str:
    """The configuration that `adaptive run` uses when it is given none, as text."""
    return files("adaptive").joinpath("example.toml").read_text(encoding="utf-8")


def load(path: Path | None) -> Config:
    """Read a configuration; the built-in example when `path` is None.

    Raises:
        ConfigError: It cannot be read or used.
    """
    where = str(path) if path else "example.toml"
    try:
        text = path.read_text(encoding="utf-8") if path else example()
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    return parse(content, where)


def parse(content: Mapping[str, Any], where: str) -> Config:
    """Make an agent's parts from the tables of a configuration; see `load`."""
    known(content, TABLES, where)
    broker = table(Broker, content["broker"], f"{where}: broker") if "broker" in content else None
    connection = Connection(broker) if broker else None
    agent = table(AgentSettings, content.get("agent", {}), f"{where}: agent")
    alarms = table(Alarms, content.get("alarms", {}), f"{where}: alarms")
    feeds = tuple(
        feed(entry, agent, alarms, connection, f"{where}: source {number}")
        for number, entry in enumerate(entries(content, "source", where), 1)
    )
    if not feeds:
        raise ConfigError(
            f"{where}: wanted at least one [[source]], got none. `adaptive example` prints a "
            "configuration to start from."
        )
    names = [raw.name for one in feeds for raw, _ in one.streams()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"{where}: streams must have different names, got {', '.join(sorted(twice))} twice. "
            'Set stream = "..." in one of the sources.'
        )
    if wild := [name for name in names if not name or set(name) & set("+#\0")]:
        raise ConfigError(
            f"{where}: a stream's name must not be empty or have + or # in it, got {wild[0]!r}: "
            'answers are published under it. Set stream = "..." beside the topic.'
        )
    sinks = tuple(
        plugin("adaptive.sinks", entry, connection, f"{where}: sink {number}")
        for number, entry in enumerate(entries(content, "sink", where), 1)
    )
    return Config(
        agent,
        table(Model, content.get("model", {}), f"{where}: model"),
        table(Settings, content.get("governor", {}), f"{where}: governor"),
        connection,
        feeds,
        sinks,
        table(PageSettings, content.get("page", {}), f"{where}: page"),
    )


def feed(
    entry: Mapping[str, Any],
    agent: AgentSettings,
    alarms: Alarms,
    connection: Connection | None,
    where: str,
) -> Feed:
    """Make a source and its transforms from a [[source]] table."""
    entry = dict(entry)
    links = tuple(
        plugin("sensors.transforms", link, None, f"{where}: transform {number}")
        for number, link in enumerate(entries(entry, "transform", where), 1)
    )
    entry.pop("transform", None)
    deadline = entry.pop("deadline_ms", agent.deadline_ms)
    number = isinstance(deadline, int | float) and not isinstance(deadline, bool)
    if not number or not 0 < deadline < float("inf"):
        raise ConfigError(f"{where}: deadline_ms must be a number above 0, got {deadline!r}")
    alarms = table(Alarms, dataclasses.asdict(alarms) | of(Alarms, entry), where)
    rank = table(Rank, of(Rank, entry), where)
    source = plugin("sensors.sources", entry, connection, where, (*COMMON, *keys(Alarms, Rank)))
    made = Feed(source, Chain(links), deadline / 1e3, alarms, rank)
    try:
        made.streams()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ConfigError(f"{where}: {error}") from error
    return made


def of(cls: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """Take out of a table what a dataclass knows."""
    return {f.name: entry.pop(f.name) for f in dataclasses.fields(cls) if f.name in entry}


def entries(content: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """The tables of an array of tables."""
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise ConfigError(f"{where}: {key} must be an array of tables: write [[{key}]]")
    return value


def keys(*classes: Any) -> list[str]:
    """The keys of dataclasses."""
    return [f.name for cls in classes for f in dataclasses.fields(cls)]


def plugin(
    group: str,
    entry: Mapping[str, Any],
    connection: Connection | None,
    where: str,
    also: Sequence[str] = (),
) -> Any:
    """Make what an entry's `kind` names, with the other keys as its options.

    Args:
        group: Of entry points.
        entry: Its table.
        connection: To the broker.
        where: The entry is, for messages.
        also: Keys that were taken out of it before, to be named where one is not known.
    """
    entry = dict(entry)
    kind = entry.pop("kind", None)
    if not isinstance(kind, str):
        have = ", ".join(plugins.names(group))
        raise ConfigError(f"{where}: wanted kind = one of {have}; got {kind!r}")
    try:
        cls = plugins.load(group, kind)
    except (LookupError, ImportError) as error:
        raise ConfigError(f"{where}: {error}") from error
    made = table(cls, entry, f"{where} ({kind})", also)
    if "connection" in {f.name for f in dataclasses.fields(cls)}:
        if connection is None:
            raise ConfigError(f"{where} ({kind}): needs a [broker] table, there is none")
        made = dataclasses.replace(made, connection=connection)
    return made


def table(cls: type[T], content: Any, where: str, also: Sequence[str] = ()) -> T:
    """Make a dataclass from a table.

    Args:
        cls: The dataclass.
        content: The table.
        where: It is, for messages.
        also: Other keys that it might have had.

    Raises:
        ConfigError: A key is not known, a value is of the wrong type, or the class refuses it.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: wanted a table, got {content!r}")
    fields = {
        f.name: f
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init and f.name != "connection"
    }
    known(content, fields, where, also)
    needed = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in content]:
        raise ConfigError(
            f"{where}: wanted the key {missing[0]!r}, got {', '.join(content) or '-'}"
        )
    values = {}
    for name, value in content.items():
        kind = fields[name].type
        inner = [arg for arg in get_args(kind) if dataclasses.is_dataclass(arg)]
        if inner and isinstance(value, list):
            values[name] = tuple(
                table(inner[0], entry, f"{where}: {name} {number}")  # type: ignore[arg-type]
                for number, entry in enumerate(value, 1)
            )
            continue
        try:
            values[name] = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {name}: {error}, which is {value!r}") from error
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def known(content: Mapping[str, Any], names: Any, where: str, also: Sequence[str] = ()) -> None:
    """Refuse keys that mean nothing, with the nearest that does."""
    for key in content:
        if key not in names:
            every = [*names, *also]
            near = get_close_matches(key, every, 1, 0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(every)}."
            raise ConfigError(f"{where}: unknown key {key!r}. {hint}")
