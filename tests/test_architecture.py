"""The house as a law: floors import downward, rooms of one floor stay apart, some libraries have one importer."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "cli": 8, "__main__": 8,
    "service": 7, "lab": 7, "testing": 7,
    "evolution": 6, "federation": 6,
    "engine": 5,
    "memory": 4, "cards": 4, "training": 4, "quantisation": 4,
    "model": 3, "diffusion": 3, "store": 3, "ipc": 3, "text": 3,
    "registry": 2, "hookspecs": 2, "security": 2, "ledger": 2,
    "errors": 1, "messages": 1, "config": 1, "log": 1, "contracts": 1,
}  # fmt: skip
SEPARATE = (3, 4, 6)     # rooms on these floors do not know each other
LAZY = 9                 # aios/__init__.py: a facade that names everything and imports nothing
ONE_IMPORTER = {
    "pluggy": {"aios/registry", "aios/hookspecs"},
    "apscheduler": {"aios/service/scheduler"},
    "msgpack": {"aios/ipc/stream"},
    "watchdog": {"aios/service/watcher"},
    "aios._native": {"aios/model/quant_linear", "aios/model/packed_encoder", "aios/model/fast_linear",
                     "aios/model/packed_layers", "aios/store", "aios/memory", "aios/text",
                     "aios/diffusion/rows", "aios/ipc/stream", "aios/lab/kernel_peaks",
                     "aios/lab/parsers"},     # the last attacks all of it
}
PLUGIN_MAY_IMPORT = ("aios.contracts", "aios.errors", "aios.hookspecs", "aios.messages", "aios.model",
                     "aios.diffusion", "aios.text")
CLI_REACHES = {"cli", "ipc", "security", "config", "messages", "errors", "log"}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 500, 70
SOURCES = sorted(p for top in ("aios", "plugins", "tests") for p in (ROOT / top).rglob("*.py")
                 if not {"__pycache__", "_plugins"} & set(p.parts))   # _plugins: a copy that an installation leaves
PACKAGE = [p for p in SOURCES if p.is_relative_to(ROOT / "aios")]


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute names of every module that `path` imports at run time (not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


def room(module: str) -> str | None:
    """The room of the house a module lives in: `aios.store.pull` -> `store`; None outside aios."""
    parts = module.split(".")
    return parts[1] if parts[0] == "aios" and len(parts) > 1 else None


def room_of_file(path: Path) -> str:
    return path.relative_to(ROOT / "aios").with_suffix("").parts[0]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    here = room_of_file(path)
    if here in ("__init__", "_templates"):
        return
    floor = FLOORS[here]
    for module in imports(path):
        there = room(module)
        if there is None or there == here or there not in FLOORS:
            continue
        assert FLOORS[there] <= floor, f"{here} (floor {floor}) imports {module} (floor {FLOORS[there]})"
        if floor in SEPARATE:
            assert FLOORS[there] != floor, f"{here} and {there} are rooms of one floor and stay apart"


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_a_library_has_one_importer(library: str) -> None:
    allowed = ONE_IMPORTER[library]
    for path in PACKAGE:
        name = str(path.relative_to(ROOT).with_suffix(""))
        uses = any(module == library or module.startswith(library + ".") for module in imports(path))
        permitted = any(name == one or name.startswith(one + "/") for one in allowed)
        assert permitted or not uses, f"{name} imports {library}"


def test_aios_never_imports_a_plugin_and_plugins_only_their_contracts() -> None:
    names = {p.name for p in (ROOT / "plugins").iterdir() if p.is_dir()}
    for path in PACKAGE:
        assert not {m.split(".")[0] for m in imports(path)} & (names | {"plugins"}), path
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "plugins") and "tests" not in p.parts):
        for module in imports(path):
            if room(module):
                assert module.startswith(PLUGIN_MAY_IMPORT), f"{path} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES_MAX, node.name


def loaded_after(code: str) -> set[str]:
    """Modules in sys.modules of a fresh interpreter after `code`."""
    program = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


def test_the_command_line_reaches_only_its_rooms() -> None:
    loaded = loaded_after("import aios.cli.main")
    rooms = {room(name) for name in loaded if name.startswith("aios.")}
    assert {r for r in rooms if r is not None} <= CLI_REACHES
    assert not loaded & {"torch", "pyarrow", "numpy", "pluggy", "asyncio"}


def test_the_parent_process_holds_no_torch_and_no_arrays() -> None:
    loaded = loaded_after("import aios.service.daemon, aios.service.server, aios.service.handlers")
    assert not loaded & {"torch", "pyarrow", "numpy", "tokenizers", "safetensors", "rich", "typer", "cryptography"}


def test_the_memory_process_holds_no_torch() -> None:
    loaded = loaded_after("import aios.service.memory_process, aios.memory.conditioner, aios.memory.notes")
    assert not loaded & {"torch", "pyarrow", "transformers", "asyncio", "typer"}


def test_importing_aios_is_free() -> None:
    assert not loaded_after("import aios") & {"torch", "numpy", "msgspec", "asyncio", "aios.engine"}
