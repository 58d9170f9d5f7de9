"""Outputs are whole or absent, and say where they came from."""

import errno
import json
import os
from pathlib import Path

import pytest

from knockscreen import __version__
from knockscreen.artifacts import atomic, digest, read_json, threads, write_json, write_manifest
from knockscreen.errors import DataError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_output_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new/table.tsv"
    with atomic(path) as temporary:
        temporary.write_text("a\n")
        assert not path.exists()
    assert path.read_text() == "a\n"
    assert leftovers(path.parent) == []


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            msg = "boom"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("old")

    def fill() -> None:
        with atomic(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match=r"cannot write .*table.tsv: No space left on device"):
        fill()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")

    def write() -> None:
        with atomic(tmp_path / "results/table.tsv") as temporary:
            temporary.write_text("a")

    with pytest.raises(DataError, match="cannot write"):
        write()


def test_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("old.npy", "new.npy"):
        with atomic(store) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [path.name for path in store.iterdir()] == ["new.npy"]
    assert leftovers(tmp_path) == []


def test_digest_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    (tmp_path / "b/x").rename(tmp_path / "b/y")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_digest_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    assert digest(tmp_path / "abc") == "xxh3:78af5f94892f3950"  # xxhsum -H3


def test_manifest_names_inputs_settings_and_versions(tmp_path: Path) -> None:
    source, output = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text("abc")
    output.write_text("b")
    path = write_manifest(output, stage="rank", inputs=[source], settings={"n": 3}, seed=7)
    manifest = json.loads(path.read_text())
    assert path.name == "out.tsv.manifest.json"
    assert manifest["inputs"] == {str(source): "xxh3:78af5f94892f3950"}
    assert (manifest["stage"], manifest["seed"], manifest["settings"]) == ("rank", 7, {"n": 3})
    assert manifest["digest"] == digest(output)
    assert manifest["versions"]["knockscreen"] == __version__


def test_json_comes_back_as_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "x"})
    assert read_json(tmp_path / "a.json") == {"a": "x", "b": [1, None]}


def test_missing_or_broken_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"plan.json does not exist; run the stage that writes it"):
        read_json(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan.json is not JSON .* at line 1"):
        read_json(tmp_path / "plan.json")


def test_threads_are_those_asked_for_then_given_then_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(5) == 5
    assert threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # nested parallelism: not a number of threads
    there = len(os.sched_getaffinity(0))
    assert threads() == there
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads() == there
