"""Whatever the documents say of the code is made from the code, and this fails when it is stale."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = runpy.run_path(str(ROOT / "scripts" / "docs.py"))
GENERATED = sorted({file for file, _ in DOCS["PARTS"]})
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_fresh(name: str) -> None:
    assert DOCS["rendered"](name) == (ROOT / name).read_text(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_in_the_pages_exists(page: Path) -> None:
    from puna.cli.main import ALIASES, COMMANDS

    blocks = "\n".join(re.findall(r"```(?:sh|bash|console)?\n(.*?)```", page.read_text(), re.DOTALL))
    for word in re.findall(r"^\$? ?puna ([a-z-]+)", blocks, re.MULTILINE):
        assert word in COMMANDS or word in ALIASES or word in {"completion", "help"}, f"puna {word}"


def test_every_make_target_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for word in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert (word[0] or word[1]) in targets, f"{page.name}: make {word}"
