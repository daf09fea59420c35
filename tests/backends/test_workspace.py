"""A replica's working copy is its own and writable, whatever the bundle's modes are."""

from __future__ import annotations

from puna.artifacts import Bundle, drafting
from puna.backends import workspace
from puna.home import Home


def make_bundle(home: Home) -> Bundle:
    with drafting("bundle", home.bundles) as draft:
        (draft.path / "app" / "sub").mkdir(parents=True)
        (draft.path / "app" / "app.py").write_text("x = 1\n")
        (draft.path / "app" / "sub" / "data.txt").write_text("data")
        (draft.path / "app" / "app.py").chmod(0o444)
    return Bundle.open(draft.final)


def test_the_copy_is_writable_and_the_bundle_untouched(home: Home) -> None:
    bundle = make_bundle(home)
    path = workspace.prepare(bundle, "r1", home)
    (path / "app.py").write_text("x = 2\n")
    (path / "new.txt").write_text("made by the app")
    assert (bundle.path / "app" / "app.py").read_text() == "x = 1\n"
    assert (path / "sub" / "data.txt").read_text() == "data"
    assert not bundle.damage()


def test_preparing_again_begins_afresh_and_removing_removes(home: Home) -> None:
    bundle = make_bundle(home)
    (workspace.prepare(bundle, "r1", home) / "left.txt").write_text("x")
    path = workspace.prepare(bundle, "r1", home)
    assert not (path / "left.txt").exists()
    workspace.remove("r1", home)
    workspace.remove("r1", home)
    assert not path.exists()
