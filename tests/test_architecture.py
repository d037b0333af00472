import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("adaptive", "sensors")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
# These measure how long something took: the costs of compiled programs, the latency of a replay,
# collections of garbage, CPU time, what the command line tells of itself. When something is due,
# only the event loop knows.
MEASURES = {
    "adaptive.bench",
    "adaptive.ingest",
    "adaptive.load",
    "adaptive.meters",
    "adaptive.programs",
    "adaptive.prequential",
    "adaptive.commands",
    "adaptive.worker",
}

each = pytest.mark.parametrize("name", MODULES)


def imports(tree):
    """The modules that a tree imports, with the names taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def roots(name):
    return {module.split(".")[0] for module, _ in imports(TREES[name])}


def within(name):
    """The modules of ours that a module imports when it is imported."""
    for node in TREES[name].body:
        for module, one in imports(node):
            for candidate in (f"{module}.{one}", module):
                if candidate in MODULES:
                    yield candidate
                    break


@pytest.mark.slow
def test_no_import_starts_jax_before_it_is_set_up():
    # A constant made by jax.numpy would: then calls would not be waited for where they are made.
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = (
        f"import {', '.join(names)}; from jax._src import xla_bridge; print(xla_bridge._backends)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{}"


@each
def test_a_module_imports_jax_or_asyncio_and_never_both(name):
    assert not {"jax", "asyncio"} <= roots(name)


@each
def test_the_leaf_package_imports_neither_the_other_nor_jax(name):
    if name.split(".")[0] == "sensors":
        assert not {"adaptive", "jax"} & roots(name)


@each
def test_no_module_imports_itself_by_way_of_others(name):
    seen, todo = set(), list(within(name))
    while todo:
        module = todo.pop()
        assert module != name, f"{name} is imported by way of {sorted(seen)}"
        if module not in seen:
            seen.add(module)
            todo += within(module)


@each
def test_nothing_but_the_event_loop_is_asked_for_the_time(name):
    assert "time" not in roots(name) or name in MEASURES
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            assert not re.search(r"\b(time\.time|(date|datetime)\.(now|utcnow|today))$", text)
            # Whoever asks the event loop is of the shell, which awaits.
            assert "get_running_loop" not in text or "asyncio" in roots(name)


@each
def test_a_module_is_not_longer_than_it_can_be_read(name):
    length = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert length <= 400


@each
def test_every_public_thing_has_a_docstring(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), f"{name} has no docstring"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    todo = [(name, node) for node in tree.body if isinstance(node, kinds)]
    while todo:
        place, node = todo.pop()
        if node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{place}.{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            todo += [(f"{place}.{node.name}", n) for n in node.body if isinstance(n, kinds)]


@each
def test_annotations_are_real_and_nothing_is_pickled(name):
    taken = set(imports(TREES[name]))
    assert ("__future__", "annotations") not in taken
    assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & roots(name)
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@each
def test_no_private_name_crosses_a_module(name):
    ours = {"adaptive", "sensors"}
    aliases = {}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ours:
            for alias in node.names:
                private = alias.name.startswith("_") and not alias.name.startswith("__")
                assert not private, f"{name} imports {alias.name}"
                if f"{node.module}.{alias.name}" in MODULES:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            assert not (private and node.value.id in aliases), f"{name} uses {ast.unparse(node)}"


@each
def test_every_protocol_can_be_checked_while_running(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(b).split("[")[0] == "Protocol" for b in node.bases
        ):
            assert "runtime_checkable" in {ast.unparse(d) for d in node.decorator_list}, node.name


@each
def test_names_of_modules_are_nouns_of_the_field(name):
    assert not set(name.split(".")) & {"utils", "helpers", "manager", "base", "common"}


def test_every_entry_point_loads():
    content = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'^[\w-]+ = "((?:adaptive|sensors)[\w.]*:\w+)"', content, re.M))
    assert len(named) > 10
    groups = ("sensors.sources", "sensors.transforms", "adaptive.sinks", "console_scripts")
    installed = [point for group in groups for point in entry_points(group=group)]
    ours = {p.value: p for p in installed if p.value.split(".")[0] in ("adaptive", "sensors")}
    assert named <= set(ours), "install the package again: pip install -e ."
    for point in ours.values():
        assert callable(point.load())
