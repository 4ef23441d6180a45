from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aios.config import Places, PluginsSection
from aios.errors import BadInput, ConfigError, NotAllowed
from aios.registry.catalog import Catalog

WritePlugin = Callable[..., Path]


def state(catalog: Catalog, name: str) -> str:
    return catalog.report(name).state


def allow(catalog: Catalog, name: str) -> None:
    catalog.allow(name, catalog.allow(name)["hash"])


def install(site: Path, write_plugin: WritePlugin, name: str, package: str, value: str | None = None) -> Path:
    """A distribution in `site` that announces a plugin."""
    folder = write_plugin(package, parent=site)
    toml = folder / "plugin.toml"
    toml.write_text(toml.read_text().replace(repr(package), repr(name)))
    info = site / f"dist_{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[aios.plugins]\n{name} = {value or package}\n")
    return folder


def test_a_plugin_of_a_stranger_waits_for_permission(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    catalog = Catalog(home)
    report = catalog.report("stranger")
    assert (report.state, report.remedy) == ("not-allowed", "aios plugins allow stranger")
    assert catalog.loadable() == []


def test_first_party_plugins_need_no_permission(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    write_plugin("ours", parent=tmp_path / "first-party")
    assert [one.name for one in Catalog(home).loadable()] == ["ours"]


def test_permission_takes_two_steps_and_lasts(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    catalog = Catalog(home)
    shown = catalog.allow("stranger")
    assert (shown["allowed"], shown["files"], shown["capabilities"]) == (False, 2, ["heads"])
    assert state(catalog, "stranger") == "not-allowed"
    assert catalog.allow("stranger", shown["hash"])["state"] == "ready"
    [loadable] = Catalog(home).loadable()
    assert (loadable.name, loadable.hash) == ("stranger", shown["hash"])
    assert (home.state / "grants.json").stat().st_mode & 0o777 == 0o600


def test_content_that_changed_after_the_look_is_not_allowed(home: Places, write_plugin: WritePlugin) -> None:
    folder = write_plugin("stranger")
    catalog = Catalog(home)
    shown = catalog.allow("stranger")
    (folder / "__init__.py").write_text("import os\n")
    with pytest.raises(NotAllowed, match="changed since you looked"):
        catalog.allow("stranger", shown["hash"])
    assert state(catalog, "stranger") == "not-allowed"


def test_one_changed_byte_ends_the_permission(home: Places, write_plugin: WritePlugin) -> None:
    folder = write_plugin("stranger")
    catalog = Catalog(home)
    allow(catalog, "stranger")
    (folder / "__init__.py").write_text((folder / "__init__.py").read_text() + "#")
    catalog.reload()
    assert state(catalog, "stranger") == "changed"
    assert catalog.loadable() == []


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[]", b'{"version": 9, "plugins": {}}', b'{"version": 1}'])
def test_a_damaged_grants_file_allows_nothing_and_is_not_overwritten(home: Places, write_plugin: WritePlugin,
                                                                      damage: bytes) -> None:
    write_plugin("stranger")
    allow(Catalog(home), "stranger")
    (home.state / "grants.json").write_bytes(damage)
    catalog = Catalog(home)
    report = catalog.report("stranger")
    assert report.state == "not-allowed"
    assert "grants.json" in report.reason
    with pytest.raises(ConfigError, match=r"grants\.json"):
        allow(catalog, "stranger")
    assert (home.state / "grants.json").read_bytes() == damage


def test_a_grants_file_that_others_can_write_allows_nothing(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    allow(Catalog(home), "stranger")
    (home.state / "grants.json").chmod(0o620)
    assert state(Catalog(home), "stranger") == "not-allowed"


def test_safe_mode_leaves_strangers_out(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    write_plugin("ours", parent=tmp_path / "first-party")
    write_plugin("stranger")
    allow(Catalog(home), "stranger")
    catalog = Catalog(home, safe_mode=True)
    assert [one.name for one in catalog.loadable()] == ["ours"]
    assert state(catalog, "stranger") == "disabled"
    assert "safe mode" in catalog.report("stranger").reason


@pytest.mark.parametrize(("settings", "loaded"), [
    (PluginsSection(), ["ours", "a", "b"]),
    (PluginsSection(disabled=("ours", "b")), ["a"]),
    (PluginsSection(only=("b",)), ["b"]),
    (PluginsSection(only=("a", "b"), disabled=("a",)), ["b"]),
    (PluginsSection(only=("c",)), []),
])
def test_daemon_toml_narrows_and_never_widens(home: Places, write_plugin: WritePlugin, tmp_path: Path,
                                              settings: PluginsSection, loaded: list[str]) -> None:
    write_plugin("ours", parent=tmp_path / "first-party")
    for name in ("b", "a", "c"):
        write_plugin(name)
    catalog = Catalog(home)
    allow(catalog, "a")
    allow(catalog, "b")
    assert [one.name for one in Catalog(home, settings).loadable()] == loaded


def test_quarantine_lasts_until_the_content_changes(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    folder = write_plugin("ours", parent=tmp_path / "first-party")
    catalog = Catalog(home)
    catalog.quarantine("ours", catalog.report("ours").hash, "plugin failed at import: ValueError: no")
    later = Catalog(home)
    assert state(later, "ours") == "quarantined"
    assert later.report("ours").reason == "plugin failed at import: ValueError: no"
    assert later.loadable() == []
    (folder / "__init__.py").write_text("")
    later.reload()
    assert state(later, "ours") == "ready"


def test_allowing_again_lifts_quarantine(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    catalog = Catalog(home)
    allow(catalog, "stranger")
    catalog.quarantine("stranger", catalog.report("stranger").hash, "plugin failed at import: SystemExit")
    assert state(catalog, "stranger") == "quarantined"
    allow(catalog, "stranger")
    assert state(catalog, "stranger") == "ready"
    assert state(Catalog(home), "stranger") == "ready"


def test_quarantine_holds_in_memory_when_the_disk_refuses(home: Places, write_plugin: WritePlugin,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.security import private_file

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    write_plugin("stranger")
    catalog = Catalog(home)
    allow(catalog, "stranger")
    monkeypatch.setattr(private_file, "write", full)
    catalog.quarantine("stranger", catalog.report("stranger").hash, "it failed")
    catalog.reload()
    assert state(catalog, "stranger") == "quarantined"


def test_active_is_what_the_worker_reports_with_this_content(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    catalog = Catalog(home)
    allow(catalog, "stranger")
    catalog.loaded({"stranger": "0" * 64})
    assert state(catalog, "stranger") == "ready"
    catalog.loaded({"stranger": catalog.report("stranger").hash})
    assert state(catalog, "stranger") == "active"
    assert catalog.counts() == {"active": 1}
    assert [one.name for one in catalog.loadable()] == ["stranger"]


def test_a_sandboxed_plugin_is_unsupported_yet(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("boxed", runs_in="sandbox")
    catalog = Catalog(home)
    allow(catalog, "boxed")
    assert state(catalog, "boxed") == "unsupported"
    assert catalog.loadable() == []


def test_what_cannot_be_read_is_invalid_and_harms_no_other(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("good")
    (write_plugin("torn") / "plugin.toml").write_text("name = ")
    (write_plugin("bare") / "plugin.toml").unlink()
    misnamed = write_plugin("misnamed") / "plugin.toml"
    misnamed.write_text(misnamed.read_text().replace("'misnamed'", "'other'"))
    write_plugin("shared").chmod(0o775)
    (home.plugins / "link").symlink_to(home.plugins / "good")
    (home.plugins / "notes.txt").write_text("no plugin")
    states = {report.name: report.state for report in Catalog(home).reports()}
    assert states == {"good": "not-allowed", **dict.fromkeys(("torn", "bare", "misnamed", "shared", "link"), "invalid")}
    with pytest.raises(BadInput, match="shared is invalid: shared can be written by other users"):
        Catalog(home).allow("shared")


def test_of_two_with_one_name_the_first_party_keeps_it(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    write_plugin("text-head", parent=tmp_path / "first-party")
    write_plugin("text-head")
    write_plugin("text_head")     # would be the same Python package
    catalog = Catalog(home)
    assert [(one.source, one.state) for one in catalog.reports()] == [
        ("first-party", "ready"), ("user", "invalid"), ("user", "invalid")]
    assert catalog.report("text-head").source == "first-party"
    with pytest.raises(BadInput, match="the name is taken"):
        catalog.allow("text_head")


def test_entry_points_are_found_without_import(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    folder = install(tmp_path / "site", write_plugin, "far", "far_package")
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    catalog = Catalog(home)
    report = catalog.report("far")
    assert (report.source, report.state, report.folder) == ("entry-point", "not-allowed", str(folder))
    allow(catalog, "far")
    assert [one.package for one in catalog.loadable()] == ["far_package"]
    assert "far_package" not in sys.modules


@pytest.mark.parametrize(("name", "package", "value"), [
    ("far", "far_package", "far_package.sub"),
    ("far", "far_package", "far_package:plugin"),
    ("far", "far_package", "nowhere"),
    ("far", "json", None),
    ("far", "aios", None),
    ("Far Away", "far_package", None),
    ("other", "far_package", None),
])
def test_entry_points_that_cannot_be_pinned_are_invalid(home: Places, write_plugin: WritePlugin, tmp_path: Path,
                                                         name: str, package: str, value: str | None) -> None:
    folder = install(tmp_path / "site", write_plugin, name, package, value)
    toml = (folder / "plugin.toml").read_text()
    (folder / "plugin.toml").write_text(toml.replace(repr(name), "'far'"))
    assert [report.state for report in Catalog(home).reports()] == ["invalid"]


def test_a_damaged_distribution_harms_no_other(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    install(tmp_path / "site", write_plugin, "far", "far_package")
    for number, text in enumerate((b"\xff\xfe", b"[aios.plugins]\nno equals sign\n", b"[aios.plugins]\nx = \n")):
        info = tmp_path / "site" / f"broken_{number}-1.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(text)
    assert Catalog(home).report("far").state == "not-allowed"


def test_names_that_are_no_text_can_still_be_listed(home: Places) -> None:
    (home.plugins / os.fsdecode(b"\xff\x1b[31m")).mkdir(0o755)
    [report] = Catalog(home).reports()
    assert (report.state, report.name) == ("invalid", "\ufffd\ufffd[31m")
    assert json.dumps(report.to_wire()).encode()


def test_the_working_directory_is_not_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aios.registry import discovery

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), "/usr/lib/python3"])
    assert discovery._search_path() == ["/usr/lib/python3"]


def test_an_unknown_plugin_is_named_with_those_that_exist(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    with pytest.raises(BadInput, match="no plugin 'ghost'; there are: stranger"):
        Catalog(home).report("ghost")


def test_reports_are_plain_data(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("stranger")
    catalog = Catalog(home)
    allow(catalog, "stranger")
    [report] = catalog.reports()
    assert json.loads(json.dumps(report.to_wire()))["capabilities"] == ["heads"]
    [loadable] = catalog.loadable()
    assert type(loadable).from_wire(loadable.to_wire()) == loadable
