"""Secret values: sealed in the database, readable with the key file only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from puna.control.resources.secrets import Seal, Secrets
from puna.control.store.store import Store
from puna.errors import MachineError, NotFoundError, UsageError
from puna.home import Home

TOKEN = "hf_a_very_secret_value"


def test_values_come_back_and_stand_nowhere_on_disk(store: Store, home: Home) -> None:
    secrets = Secrets(store, home.key)
    secrets.save("hub", {"HF_TOKEN": TOKEN, "N": "1"}, 1.0)
    secrets.save("more", {"N": "2"}, 1.0)
    assert Secrets(store, home.key).open(["hub", "more"]) == {"HF_TOKEN": TOKEN, "N": "2"}
    store.close()
    for file in home.root.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    assert stat.S_IMODE(os.stat(home.key).st_mode) == 0o600


def test_the_store_lists_names_only(store: Store, home: Home) -> None:
    Secrets(store, home.key).save("hub", {"HF_TOKEN": TOKEN}, 1.0)
    assert store.secrets() == {"hub": ["HF_TOKEN"]}


def test_another_key_file_opens_nothing(store: Store, home: Home) -> None:
    Secrets(store, home.key).save("hub", {"HF_TOKEN": TOKEN}, 1.0)
    home.key.unlink()
    with pytest.raises(MachineError, match="the key file has changed"):
        Secrets(store, home.key).open(["hub"])


def test_a_row_moved_to_another_name_does_not_open(store: Store, home: Home) -> None:
    secrets = Secrets(store, home.key)
    secrets.save("hub", {"HF_TOKEN": TOKEN}, 1.0)
    store.save_secret("other", ["HF_TOKEN"], store.sealed_secret("hub"), 1.0)
    with pytest.raises(MachineError):
        secrets.open(["other"])


def test_a_key_file_that_others_may_read_is_refused(store: Store, home: Home) -> None:
    Secrets(store, home.key)
    home.key.chmod(0o644)
    with pytest.raises(MachineError, match="readable by others"):
        Secrets(store, home.key)


def test_names_are_checked_and_missing_sets_are_named(store: Store, home: Home) -> None:
    secrets = Secrets(store, home.key)
    with pytest.raises(UsageError, match="'A-B' is not a name"):
        secrets.save("hub", {"A-B": "x"}, 1.0)
    with pytest.raises(NotFoundError, match="no secret `hub`"):
        secrets.open(["hub"])
    secrets.save("hub", {"A": "x"}, 1.0)
    store.delete_secret("hub")
    with pytest.raises(NotFoundError):
        store.delete_secret("hub")


def test_a_fingerprint_keeps_its_meaning_over_versions_and_tells_parts_apart(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    seal = Seal(key)
    # Replies that a home keeps are found by it: another way to make it would be a second deploy of a repeated call.
    assert seal.fingerprint(b"caller", b"key") == "705e4574c915651ee40cb7457ed6f0f5b0df5a6ef462deb586b710dafd222b06"
    assert len({seal.fingerprint(b"ab", b"c"), seal.fingerprint(b"a", b"bc"), seal.fingerprint(b"abc")}) == 3
