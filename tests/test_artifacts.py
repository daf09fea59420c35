"""Artifacts are written whole or not at all, and know when they were tampered with."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from puna.artifacts import (
    Artifact,
    Dataset,
    Model,
    drafting,
    file_digest,
    remove,
    tree_digest,
    write_json,
    write_text,
)
from puna.errors import ConflictError, MachineError, NotFoundError


def write_model(parent: Path, text: str = "weights", name: str | None = None) -> Model:
    with drafting("model", parent, name) as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "w.bin").write_text(text)
        draft.made_from["base"] = "hub:a/b@1"
        draft.metrics["loss"] = 1.5
    return Model.open(draft.final)


def test_an_artifact_is_named_by_the_digest_of_its_files(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    files = {"deep/w.bin": file_digest(model.path / "deep" / "w.bin")}
    assert model.digest == tree_digest(files) and model.path.name == model.digest[:16]
    assert model.manifest.made_from == {"base": "hub:a/b@1"} and model.manifest.metrics == {"loss": 1.5}
    assert not model.damage()


def test_the_same_files_twice_are_one_artifact(tmp_path: Path) -> None:
    assert write_model(tmp_path).path == write_model(tmp_path).path
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_that_is_taken_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    write_model(tmp_path, "one", "adapter")
    with pytest.raises(ConflictError, match="exists already"):
        write_model(tmp_path, "two", "adapter")
    assert (tmp_path / "adapter" / "deep" / "w.bin").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), drafting("model", tmp_path) as draft:
        (draft.path / "half").write_text("x")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_with_a_hint_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no space left") as caught, drafting("model", tmp_path) as draft:
        (draft.path / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "PUNA_HOME" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".draft-4194305-abc").mkdir()  # above the largest process id there can be
    write_model(tmp_path, name="m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    (model.path / "deep" / "w.bin").write_text("weights!")
    assert model.damage() == "deep/w.bin has changed"


def test_opening_the_wrong_kind_or_nothing_says_so(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    with pytest.raises(NotFoundError, match="holds a model, not a dataset"):
        Dataset.open(model.path)
    with pytest.raises(NotFoundError, match=r"manifest.json is missing"):
        Dataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(NotFoundError, match="cannot be read"):
        Dataset.open(tmp_path)


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "one", mode=0o600)
    write_json(tmp_path / "a", {"b": 1})
    assert json.loads((tmp_path / "a").read_text()) == {"b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_written_right_after_an_artifact_was_sealed_is_damage(tmp_path: Path) -> None:
    for number in range(20):
        with drafting("thing", tmp_path, str(number)) as draft:
            (draft.path / "a").write_text("one")
        (draft.final / "a").write_text("eno")
        assert Artifact.open(draft.final).damage() == "a has changed"


def test_damage_is_what_was_written_later_and_differs_and_the_same_artifact_takes_its_place(tmp_path: Path) -> None:
    def make() -> Artifact:
        with drafting("thing", tmp_path) as draft:
            (draft.path / "a").write_text("one")
            (draft.path / "b").write_text("two")
        return Artifact.open(draft.final)

    made = make()
    later = time.time() + 60
    os.utime(made.path / "a", (later, later))
    assert made.damage() == ""
    (made.path / "a").write_text("eno")
    os.utime(made.path / "a", (later, later))
    assert made.damage() == "a has changed"
    assert make().path == made.path and made.damage() == ""
    (made.path / "b").unlink()
    assert made.damage() == "b is missing"
    make()
    assert made.damage() == "" and (made.path / "b").read_text() == "two"
    (made.path / "manifest.json").write_text("")
    assert make().damage() == ""
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]


def test_an_artifact_is_written_beside_others_that_write_and_remove_the_same(tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> int:
        written = 0
        while not stop.is_set():
            with drafting("model", tmp_path) as draft:
                (draft.path / "w.bin").write_text("weights")
            written += 1
        return written

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write) for _ in range(3)]
        try:
            for _ in range(300):
                for path in tmp_path.glob("[!.]*"):
                    remove(path)
                time.sleep(0.001)
        finally:
            stop.set()
    assert all(one.result() > 3 for one in writing)
    assert all(Model.open(path).damage() == "" for path in tmp_path.glob("[!.]*"))
    assert list(tmp_path.glob(".*")) == []


def test_every_file_and_folder_of_an_artifact_reaches_the_disk_before_its_name_does(
    tmp_path: Path, synced: list[Path]
) -> None:
    linked = tmp_path / "linked"
    linked.write_text("16 GB")
    with drafting("model", tmp_path / "models") as draft:
        (draft.path / "deep" / "deeper").mkdir(parents=True)
        for name in ("config.json", "deep/w.bin", "deep/deeper/x.bin"):
            (draft.path / name).write_text(name)
        os.link(linked, draft.path / "linked.bin")
        draft.known["linked.bin"] = file_digest(linked)
    seen = [path.relative_to(draft.path).as_posix() for path in synced if path.is_relative_to(draft.path)]
    manifest = [name for name in seen if name.startswith(".manifest.json.")]
    files = ["config.json", "deep/deeper/x.bin", "deep/w.bin"]
    assert sorted(seen) == sorted([*manifest, *files, "deep", "deep/deeper", "."])
    assert len(manifest) == 1 and seen[-1] == ".", "the folder last: it has the names of all the others"
    assert synced[-1] == tmp_path / "models", "and the new name itself"


def test_text_that_is_replaced_reaches_the_disk_before_its_name_does(tmp_path: Path, synced: list[Path]) -> None:
    write_text(tmp_path / "a", "one")
    assert [path.name.startswith(".a.") for path in synced] == [True]
