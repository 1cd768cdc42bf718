"""Which module may import what: the import-linter's contracts, and a literal table beside them.

The table is what a reader may rely on: who looks for the event loop, the disk or the network finds all of it here.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = {
    "trio": {
        "api.connection", "api.events", "api.look", "api.poller", "api.server", "api.waiting", "daemon", "durability", "journal.journal",
        "host", "housekeeping", "listening", "opening", "kubernetes.client", "kubernetes.cluster", "kubernetes.reflector", "store.embedded",
        "ctl.client", "ctl.command", "ctl.completion", "ctl.examination", "ctl.commands.events", "ctl.commands.ipam.map", "ctl.commands.node", "ctl.commands.top", "runtime.survey",
        "store.etcd.call", "store.etcd.session", "store.etcd.store", "store.etcd.watch", "store.claimer", "store.cleaner", "store.hold",
        "store.presence", "store.sync", "store.writer",
        "supervisor",
    },
    "etcd3": {"store.etcd.rpc"},
    "grpc": {"store.etcd.channel", "store.etcd.rpc", "store.etcd.watch"},
    "google": {"store.etcd.rpc"},
    "httpx": {"kubernetes.client"},
    "importlib": {"ctl.main", "store.etcd.rpc"},
    "prometheus_client": {"metrics"},
    "structlog": {"logs"},
    "logging": {"logs"},
    "sqlite3": {"store.embedded", "store.sqlite"},
    "threading": {"store.etcd.rpc", "store.etcd.watch"},
    "subprocess": {"cni.build"},
    "argparse": {"cli.main"},
    "click": {
        "ctl.asking", "ctl.command", "ctl.completion", "ctl.commands.about", "ctl.commands.bundle", "ctl.commands.events", "ctl.commands.explain", "ctl.commands.gc",
        "ctl.commands.node", "ctl.commands.records", "ctl.commands.takeover", "ctl.commands.top", "ctl.main", "ctl.output", "ctl.pages", "ctl.resources.kinds",
        "ctl.commands.changes", "ctl.commands.ipam.check", "ctl.commands.ipam.configure", "ctl.commands.ipam.holders", "ctl.commands.ipam.release", "ctl.commands.ipam.show", "ctl.commands.ipam.split", "ctl.commands.label", "ctl.usage",
        "ctl.commands.ipam.drawing", "ctl.commands.ipam.map",
    },
    "yaml": {"ctl.yamls"},
}  # fmt: skip
"""Package -> the modules below ``ipamd`` that import it: no more and no fewer."""

IMPURE = {
    "asyncio", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select", "shutil", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
    "etcd3", "google", "grpc", "httpx", "prometheus_client", "structlog", "trio",
}  # fmt: skip
"""What brings a clock, randomness, a file, a socket, a thread or the environment: not for the core."""

STAGES = ("api", "journal", "store", "kubernetes", "runtime")


def modules() -> dict[str, ast.Module]:
    """Every module by its name without ``ipamd.``; a package by its own name, ``ipamd`` itself by the empty one."""
    found = {}
    for path in (ROOT / "ipamd").rglob("*.py"):
        parts = path.relative_to(ROOT / "ipamd").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, also inside functions and under ``TYPE_CHECKING``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the whole name of what is imported"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "find_spec", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def _name(function: ast.expr) -> str:
    """The last part of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def packages(tree: ast.Module) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(tree)}


def stages(tree: ast.Module) -> set[str]:
    """The stages of a request that a module imports from."""
    names = [name.split(".") for name in imports(tree)]
    return {parts[1] for parts in names if parts[0] == "ipamd" and len(parts) > 1 and parts[1] in STAGES}


def undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Public classes and functions, and those of public classes, without a docstring."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{prefix}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}.{node.name}")


def test_the_contracts_of_the_import_linter_hold() -> None:
    """The core is pure, and the stages of STAGES never import one another, directly or by others."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("package", ALLOWED)
def test_each_library_is_imported_by_the_modules_of_the_table_only(package: str) -> None:
    """What a library is used for is found in the modules that the table names, and nowhere else."""
    assert {name for name, tree in MODULES.items() if package in packages(tree)} == ALLOWED[package]


def test_the_core_is_pure() -> None:
    """No module of the core imports what knows a clock, chance, a file or a socket, or asks what time it is."""
    core = {name: tree for name, tree in MODULES.items() if name.partition(".")[0] == "core"}
    assert len(core) > 10
    assert {name: found for name, tree in core.items() if (found := packages(tree) & IMPURE)} == {}
    for name, tree in core.items():
        called = {_name(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"now", "utcnow", "today", "open"}, name
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)), name


def test_only_the_daemon_knows_all_stages() -> None:
    """The composition root alone puts api, journal, store, kubernetes and runtime together."""
    assert stages(MODULES["daemon"]) == set(STAGES)
    several = {name for name, tree in MODULES.items() if len(stages(tree)) > 1}
    assert several == {"daemon"}


def test_commands_reach_stores_through_one_module() -> None:
    """Of the stores, ``ctl`` knows the protocol; implementations are known to ``target``, messages to ``relayed``."""
    found = {
        name: {imported for imported in imports(tree) if re.match(r"ipamd\.store\.(?!base\b)[a-z]", imported)}
        for name, tree in MODULES.items()
        if name.startswith("ctl")
    }
    assert {name for name, imported in found.items() if imported} == {"ctl.relayed", "ctl.target"}


def test_a_start_imports_nothing_that_only_some_daemons_need() -> None:
    """Who does not ask the Kubernetes API or etcd pays nothing for being able to; nobody for rich being installed."""
    heavy = {"httpx", "yaml", "grpc", "google.protobuf", "sqlite3", "click", "rich", "pygments"}
    assert importlib.util.find_spec("rich") is not None, "else this shows nothing"
    script = f"import sys, ipamd.daemon; print(*(n for n in sys.modules if 'kubernetes' in n or n in {heavy}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_everything_public_is_documented() -> None:
    """Every module has its contract, every public class and function a sentence at least."""
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []
    assert [found for name, tree in MODULES.items() for found in undocumented(tree.body, name)] == []
