"""The worker's plugins: imported from verified bytes, checked, and called so that one's failure is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from aios import hookspecs, messages
from aios.contracts import Head, Modality
from aios.errors import ManifestError, PluginError
from aios.messages import Request, Response
from aios.registry import content, manifest, snapshot
from aios.registry.reason import describe, one_line

if TYPE_CHECKING:
    from aios.config import Config, Places
    from aios.registry.catalog import Loadable

HEADS_PER_PLUGIN_MAX = 16     # four modalities exist
PROCESSES = ("absorbing", "flow")
HOOKS_OF = {"heads": ("aios_heads",), "events": ("aios_route", "aios_response_ready")}   # capability -> hooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A plugin that was taken out, the content that failed and how: `plugin failed at import: ValueError: no`.

    `changed`: not its code failed; its folder no longer held what was to be loaded, so that it must be looked
    at again rather than quarantined.
    """

    plugin: str
    hash: str
    reason: str
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    plugin: object
    package: str | None
    hash: str
    heads: tuple[Head, ...]


class Registry:
    """The plugins of one engine. Replaced as a whole between requests; failures only ever take members out.

    `failed` is called for every plugin that is taken out, so that the parent can quarantine it.
    """

    def __init__(self, *, failed: Callable[[Failure], None] | None = None) -> None:
        self.failures: list[Failure] = []
        self._failed = failed
        self._members: dict[str, _Member] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def load(cls, wanted: Iterable[Loadable], *, previous: Registry | None = None,
             failed: Callable[[Failure], None] | None = None,
             announce: Callable[[str], None] | None = None) -> Registry:
        """Load the plugins in the given order; what fails is in `failures`, the others are unharmed.

        A plugin that `previous` holds with the same content is taken over as it is. `announce` is called with a
        plugin's name before any of its code runs, so that whoever watches knows whom to blame for a crash.
        """
        registry = cls(failed=failed)
        old = dict(previous._members) if previous is not None else {}
        for one in wanted:
            member = old.pop(one.name, None)
            if member is not None and (member.hash, member.package) == (one.hash, one.package):
                registry._members[one.name] = member
                registry._manager.register(member.plugin, one.name)
                continue
            if announce is not None:
                announce(one.name)
            registry._load(one)
        for member in old.values():
            if member.package is not None and member.package not in registry._packages():
                snapshot.uninstall(member.package)
        return registry

    @classmethod
    def allowed(cls, config: Config, places: Places) -> Registry:
        """What the owner of this home allows, loaded; for use as a library, where nobody keeps quarantine."""
        from aios.registry.catalog import Catalog

        return cls.load(Catalog(places, config.plugins).loadable())

    @property
    def loaded(self) -> dict[str, str]:
        """Name -> content hash of every plugin that works, in order."""
        return {name: member.hash for name, member in self._members.items()}

    def heads(self) -> list[tuple[str, Head]]:
        """(plugin, head) in order. The first for a modality answers for it: nobody is displaced silently."""
        return [(name, head) for name, member in self._members.items() for head in member.heads]

    def add(self, name: str, plugin: object, *, content_hash: str = "", package: str | None = None,
            capabilities: Iterable[str] = ("heads", "events")) -> None:
        """Register an imported plugin; raises PluginError, after which the plugin is not in the registry."""
        if name in self._members:
            raise PluginError(f"there is a plugin called {name} already", plugin=name)
        with _telling(name, "when it was registered"):
            self._manager.register(plugin, name)
        member = _Member(plugin=plugin, package=package, hash=content_hash, heads=())
        self._members[name] = member
        try:
            self._check_hooks(name, plugin, capabilities)
            self._members[name] = replace(member, heads=self._collect(name))
        except BaseException:
            del self._members[name]
            self._manager.unregister(plugin)
            raise

    def quarantine(self, name: str, reason: str) -> None:
        """Take a plugin out for good; later requests find another head or none. Unknown names are ignored."""
        member = self._members.pop(name, None)
        if member is not None:
            self._manager.unregister(member.plugin)
            self._report(Failure(plugin=name, hash=member.hash, reason=one_line(reason)))

    def route(self, request: Request) -> Request:
        """The request to serve: that of the first plugin with an opinion, else the given one."""
        for name in self._implementing("aios_route"):
            try:
                with _telling(name, "in aios_route"):
                    chosen: Request | None = self._call(name, "aios_route", request=request)
                    if chosen is None:
                        continue
                    if type(chosen) is not type(request):
                        raise TypeError(f"it returned a {type(chosen).__name__} for a {type(request).__name__}")
                    messages.check(chosen)
            except PluginError as error:
                self.quarantine(name, error.message)
                continue
            return chosen
        return request

    def response_ready(self, request: Request, response: Response) -> None:
        """Tell every plugin that listens; none of them can delay or change another's turn by failing."""
        for name in self._implementing("aios_response_ready"):
            try:
                with _telling(name, "in aios_response_ready"):
                    self._call(name, "aios_response_ready", request=request, response=response)
            except PluginError as error:
                self.quarantine(name, error.message)

    def _load(self, one: Loadable) -> None:
        try:
            read = content.read(Path(one.folder), keep=True, trusted=one.source == "first-party")
            if read.hash != one.hash or read.manifest is None:
                raise ManifestError("its content changed after it was looked at")
            said = manifest.parse(read.manifest)
        except ManifestError as error:
            self._report(Failure(plugin=one.name, hash=one.hash, reason=one_line(error.message), changed=True))
            return
        try:
            with _telling(one.name, "at import"):
                snapshot.install(one.package, Path(one.folder), read.files)
                module = import_module(one.package)
            self.add(one.name, module, content_hash=one.hash, package=one.package, capabilities=said.capabilities)
        except PluginError as error:
            snapshot.uninstall(one.package)
            self._report(Failure(plugin=one.name, hash=one.hash, reason=one_line(error.message)))

    def _report(self, failure: Failure) -> None:
        self.failures.append(failure)
        if self._failed is not None:
            self._failed(failure)

    def _packages(self) -> set[str | None]:
        return {member.package for member in self._members.values()}

    def _check_hooks(self, name: str, plugin: object, capabilities: Iterable[str]) -> None:
        """Every hook it implements must exist and belong to a capability the owner was shown."""
        declared = {hook for capability in capabilities for hook in HOOKS_OF.get(capability, ())}
        for caller in self._manager.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                raise PluginError(f"plugin implements a hook that does not exist: {caller.name}", plugin=name)
            if caller.name not in declared:
                raise PluginError(f"plugin implements {caller.name}, but its manifest names no such capability",
                                  plugin=name)

    def _collect(self, name: str) -> tuple[Head, ...]:
        if name not in self._implementing("aios_heads"):
            return ()
        with _telling(name, "in aios_heads"):
            [heads] = self._call(name, "aios_heads") or [[]]
            if not isinstance(heads, list | tuple) or len(heads) > HEADS_PER_PLUGIN_MAX:
                raise TypeError(f"it must return a list of at most {HEADS_PER_PLUGIN_MAX} heads")
            for head in heads:
                _check_head(head)
        return tuple(heads)

    def _implementing(self, hook: str) -> list[str]:
        """Names of the plugins that implement a hook, in the order in which they were loaded."""
        implementing = {one.plugin_name for one in getattr(self._manager.hook, hook).get_hookimpls()}
        return [name for name in self._members if name in implementing]

    def _call(self, name: str, hook: str, **arguments: Any) -> Any:
        """One plugin's implementation alone: pluggy would let the first failure keep the others from being called."""
        others = [plugin for other, plugin in self._manager.list_name_plugin() if other != name and plugin is not None]
        return self._manager.subset_hook_caller(hook, others)(**arguments)


class _telling:
    """Turns whatever a plugin's code raises, even SystemExit or a Rust panic, into a PluginError that names it."""

    def __init__(self, plugin: str, when: str) -> None:
        self._plugin = plugin
        self._when = when

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> Literal[False]:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        raise PluginError(f"plugin failed {self._when}: {describe(error)}", plugin=self._plugin,
                          remedy="`aios plugins show` tells its state") from error


def _check_head(head: Any) -> None:
    """Hold a head against the contract as far as that goes without opening it; raises TypeError."""
    modality, process = getattr(head, "modality", None), getattr(head, "process", None)
    known: Mapping[str, Modality] = {one.name.lower(): one for one in Modality}
    if modality not in known:
        raise TypeError(f"a head's modality is one of {', '.join(known)}, not {modality!r:.40}")
    also = getattr(head, "also", ())
    if not isinstance(also, tuple) or not set(also) <= set(known):
        raise TypeError(f"a head's `also` is a tuple of {', '.join(known)}, not {also!r:.80}")
    if process not in PROCESSES:
        raise TypeError(f"a head's process is one of {', '.join(PROCESSES)}, not {process!r:.40}")
    if not callable(getattr(head, "open", None)):
        raise TypeError("a head needs a method open(workbench, model)")
