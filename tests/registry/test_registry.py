from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.config import Places
from aios.errors import PluginError
from aios.hookspecs import hookimpl
from aios.messages import Diffuse, Encode, Part, Response, Usage, Verdict
from aios.registry.catalog import Loadable
from aios.registry.discovery import look
from aios.registry.registry import Failure, Registry

WritePlugin = Callable[..., Path]

PANIC = """
class PanicException(BaseException):
    pass
raise PanicException("called `Option::unwrap()` on a `None` value")
"""
RESPONSE = Response(parts=(Part(mime="text/plain", text="x"),), modality=frozenset({"text"}), usage=Usage(),
                    verdict=Verdict(model="m", release="r", instruction_set="AVX2", threads=1))


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """No test's plugin is left in the interpreter."""
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith("aios_plugin_")]:
        del sys.modules[name]


def loadable(folder: Path) -> Loadable:
    found = look(folder, "user")
    assert found.fault is None, found.fault
    return Loadable(name=found.name, folder=str(folder), package=found.package, hash=found.hash, source="user")


def test_a_healthy_plugin_brings_its_heads(write_plugin: WritePlugin) -> None:
    one = loadable(write_plugin("healthy"))
    registry = Registry.load([one])
    assert registry.loaded == {"healthy": one.hash}
    assert [(name, head.modality) for name, head in registry.heads()] == [("healthy", "text")]
    assert registry.failures == []


@pytest.mark.parametrize(("code", "reason"), [
    ("raise ValueError('no   luck\\ntoday')", "plugin failed at import: ValueError: no luck today"),
    ("import nowhere_to_be_found", "plugin failed at import: ModuleNotFoundError: No module named"),
    ("def broken(:", "plugin failed at import: SyntaxError"),
    ("import sys; sys.exit(3)", "plugin failed at import: SystemExit: 3"),
    ("raise SystemExit", "plugin failed at import: SystemExit"),
    (PANIC, "plugin failed at import: PanicException: called `Option::unwrap()`"),
    ("from aios.errors import BadInput\nraise BadInput('no')", "plugin failed at import: BadInput: no"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_heads(wrong): return []",
     "plugin failed when it was registered: PluginValidationError"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_tails(): return []",
     "plugin implements a hook that does not exist: aios_tails"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_route(request): return None",
     "plugin implements aios_route, but its manifest names no such capability"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_heads(): return 1/0",
     "plugin failed in aios_heads: ZeroDivisionError"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_heads(): return 7",
     "plugin failed in aios_heads: TypeError: it must return a list"),
    ("from aios.hookspecs import hookimpl\n@hookimpl\ndef aios_heads(): return [object()]",
     "plugin failed in aios_heads: TypeError: a head's modality is one of"),
    (r"raise ValueError('\x1b[31mred\ud800')", "plugin failed at import: ValueError: \ufffd[31mred\ufffd"),
    ("class Mute(Exception):\n  def __str__(self): raise KeyError\nraise Mute", "plugin failed at import: Mute"),
    ("raise ValueError('x' * 100_000)", "plugin failed at import: ValueError: xxx"),
])
def test_a_failing_plugin_is_taken_out_and_the_others_are_unharmed(write_plugin: WritePlugin, code: str,
                                                                    reason: str) -> None:
    before, broken, after = write_plugin("before"), write_plugin("broken", code), write_plugin("later")
    told: list[Failure] = []
    announced: list[str] = []
    registry = Registry.load([loadable(before), loadable(broken), loadable(after)], failed=told.append,
                             announce=announced.append)
    assert list(registry.loaded) == ["before", "later"]
    assert len(registry.heads()) == 2
    assert announced == ["before", "broken", "later"]
    assert [(failure.plugin, failure.changed) for failure in told] == [("broken", False)]
    assert told[0].reason.startswith(reason)
    assert len(told[0].reason) <= 300
    assert "\n" not in told[0].reason
    assert "aios_plugin_broken" not in sys.modules


def test_a_keyboard_interrupt_is_the_users_and_not_the_plugins(write_plugin: WritePlugin) -> None:
    with pytest.raises(KeyboardInterrupt):
        Registry.load([loadable(write_plugin("slow", "raise KeyboardInterrupt"))])


@pytest.mark.parametrize("change", ["byte", "writable", "gone"])
def test_what_changed_since_it_was_allowed_is_not_imported(write_plugin: WritePlugin, change: str) -> None:
    folder = write_plugin("late", "import builtins\nbuiltins.late_was_imported = True\n")
    one = loadable(folder)
    if change == "byte":
        (folder / "__init__.py").write_text((folder / "__init__.py").read_text() + "#")
    elif change == "writable":
        (folder / "__init__.py").chmod(0o666)
    else:
        folder.rename(folder.with_name("away"))
    registry = Registry.load([one])
    [failure] = registry.failures
    assert failure.changed
    assert registry.loaded == {}
    import builtins

    assert not hasattr(builtins, "late_was_imported")


def test_code_comes_from_the_snapshot_and_never_from_the_disk_again(write_plugin: WritePlugin) -> None:
    code = """
import pkgutil
from aios.hookspecs import hookimpl
from .inner import VALUE
from .deep.leaf import LEAF
WORD = pkgutil.get_data(__name__, "word.txt").decode()

def late():
    from . import later
    return later.VALUE
"""
    folder = write_plugin("packed", code, capabilities=[])
    (folder / "deep").mkdir(mode=0o755)
    for name, text in (("inner.py", "VALUE = 1"), ("later.py", "VALUE = 'allowed'"), ("word.txt", "mot"),
                       ("deep/__init__.py", ""), ("deep/leaf.py", "from ..inner import VALUE as LEAF")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    one = loadable(folder)
    registry = Registry.load([one])
    assert registry.failures == []
    module = sys.modules["aios_plugin_packed"]
    assert (module.VALUE, module.LEAF, module.WORD) == (1, 1, "mot")
    assert module.__file__ == str(folder / "__init__.py")
    (folder / "later.py").write_text("VALUE = 'exchanged'")
    (folder / "smuggled.py").write_text("VALUE = 'smuggled'")
    assert module.late() == "allowed"
    with pytest.raises(ModuleNotFoundError):
        __import__("aios_plugin_packed.smuggled")
    with pytest.raises(FileNotFoundError):
        module.__loader__.get_data(str(folder / "smuggled.py"))


def test_a_plugin_cannot_take_the_place_of_a_loaded_module(write_plugin: WritePlugin) -> None:
    one = loadable(write_plugin("impostor"))
    stolen = Loadable(name=one.name, folder=one.folder, package="pluggy", hash=one.hash, source="entry-point")
    registry = Registry.load([stolen])
    assert "a module called pluggy is loaded already" in registry.failures[0].reason
    assert sys.modules["pluggy"].__name__ == "pluggy"


def test_reloading_keeps_what_is_unchanged_and_replaces_the_rest(write_plugin: WritePlugin) -> None:
    kept, changed, removed = write_plugin("kept"), write_plugin("changed"), write_plugin("removed")
    old = Registry.load([loadable(kept), loadable(changed), loadable(removed)])
    heads = dict(old.heads())
    (changed / "__init__.py").write_text((changed / "__init__.py").read_text().replace('"text"', '"code"'))
    announced: list[str] = []
    new = Registry.load([loadable(kept), loadable(changed)], previous=old, announce=announced.append)
    assert announced == ["changed"]
    assert dict(new.heads())["kept"] is heads["kept"]
    assert dict(new.heads())["changed"].modality == "code"
    assert "aios_plugin_removed" not in sys.modules
    assert dict(old.heads())["changed"].modality == "text"


class Chooser:
    def __init__(self, choose: Callable[[Any], Any]) -> None:
        self.choose = choose

    @hookimpl
    def aios_route(self, request: Any) -> Any:
        return self.choose(request)


class Listener:
    def __init__(self, hear: Callable[[], object]) -> None:
        self.hear = hear

    @hookimpl
    def aios_response_ready(self, response: Response) -> None:
        self.hear()


def crash(*_: object) -> None:
    raise SystemExit("bye")


def test_the_first_plugin_with_an_opinion_routes() -> None:
    registry = Registry()
    registry.add("silent", Chooser(lambda request: None))
    registry.add("first", Chooser(lambda request: Diffuse(prompt=request.prompt, steps=3)))
    registry.add("second", Chooser(lambda request: Diffuse(prompt=request.prompt, steps=9)))
    routed = registry.route(Diffuse(prompt="x"))
    assert isinstance(routed, Diffuse)
    assert routed.steps == 3
    assert Registry().route(Diffuse(prompt="x")) == Diffuse(prompt="x")


@pytest.mark.parametrize(("choose", "reason"), [
    (crash, "plugin failed in aios_route: SystemExit: bye"),
    (lambda request: Encode(texts=()), "plugin failed in aios_route: TypeError: it returned a Encode for a Diffuse"),
    (lambda request: Diffuse(prompt="x", steps=-1), "plugin failed in aios_route: BadInput: steps is -1"),
])
def test_a_route_that_fails_is_passed_over_and_quarantined(choose: Callable[[Any], Any], reason: str) -> None:
    told: list[Failure] = []
    registry = Registry(failed=told.append)
    registry.add("bad", Chooser(choose), content_hash="h")
    registry.add("good", Chooser(lambda request: Diffuse(prompt="better")))
    assert registry.route(Diffuse(prompt="x")) == Diffuse(prompt="better")
    assert list(registry.loaded) == ["good"]
    assert (told[0].plugin, told[0].hash) == ("bad", "h")
    assert told[0].reason.startswith(reason)


def test_every_listener_hears_a_response_though_one_fails() -> None:
    heard: list[str] = []
    registry = Registry()
    registry.add("a", Listener(lambda: heard.append("a")))
    registry.add("b", Listener(crash))
    registry.add("c", Listener(lambda: heard.append("c")))
    registry.response_ready(Diffuse(prompt="x"), RESPONSE)
    assert heard == ["a", "c"]
    assert list(registry.loaded) == ["a", "c"]
    registry.response_ready(Diffuse(prompt="x"), RESPONSE)
    assert heard == ["a", "c", "a", "c"]


def test_a_name_is_registered_once() -> None:
    registry = Registry()
    registry.add("a", Chooser(crash))
    with pytest.raises(PluginError, match="there is a plugin called a already"):
        registry.add("a", Chooser(crash))


def test_quarantine_of_an_unknown_plugin_changes_nothing() -> None:
    registry = Registry()
    registry.quarantine("ghost", "it is not here")
    assert registry.failures == []


def test_the_library_loads_what_the_owner_allows(home: Places, write_plugin: WritePlugin) -> None:
    from aios.config import Config
    from aios.registry.catalog import Catalog

    write_plugin("allowed")
    write_plugin("stranger")
    catalog = Catalog(home)
    catalog.allow("allowed", catalog.allow("allowed")["hash"])
    assert list(Registry.allowed(Config(), home).loaded) == ["allowed"]
