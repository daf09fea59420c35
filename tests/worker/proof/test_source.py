"""Which files are the app's, by whatever path code says it was compiled from."""

import os
from pathlib import Path

import pytest

from puna.worker.proof.source import Sources


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app's folder with a module, beside a library, with links that lead in and out."""
    for name in ("app/app.py", "app/parts/model.py", "app/venv/site-packages/lib.py", "lib/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "app")
    (tmp_path / "lib" / "mine.py").symlink_to(tmp_path / "app" / "app.py")
    (tmp_path / "app" / "theirs.py").symlink_to(tmp_path / "lib" / "other.py")
    (tmp_path / "app" / "outside").symlink_to(tmp_path / "lib")
    return tmp_path / "app"


@pytest.mark.parametrize(
    ("path", "is_inside"),
    [
        ("app/app.py", True),
        ("app/parts/model.py", True),
        ("app/parts/../app.py", True),
        ("link/app.py", True),
        ("link/parts/model.py", True),
        ("lib/mine.py", True),
        ("app/never_written.py", True),
        ("lib/other.py", False),
        ("app/theirs.py", False),
        ("app/outside/other.py", False),
        ("app/../lib/other.py", False),
        ("app/venv/site-packages/lib.py", False),
        ("app2/app.py", False),
        ("app", False),
        ("app/..", False),
    ],
)
def test_a_file_is_the_apps_wherever_links_lead(app: Path, path: str, is_inside: bool) -> None:
    sources = Sources(str(app))
    for said in (f"{app.parent}/{path}", os.path.join(app.parent, path)):
        assert sources.is_inside(said) is is_inside and sources.is_inside(said) is is_inside


@pytest.mark.parametrize("path", ["app.py", "<string>", "<frozen importlib._bootstrap>", ""])
def test_what_is_no_absolute_path_is_nobodys(app: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    assert not Sources(str(app)).is_inside(path)
