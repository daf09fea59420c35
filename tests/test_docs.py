"""Whatever the documents say of the code is made from the code, and this fails when it is stale."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = runpy.run_path(str(ROOT / "scripts" / "docs.py"))
GENERATED = sorted({file for file, _ in DOCS["PARTS"]})
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_fresh(name: str) -> None:
    assert DOCS["rendered"](name) == (ROOT / name).read_text(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
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


def test_decisions_are_numbered_without_a_gap_have_one_form_and_stand_in_the_index() -> None:
    parts = ["Context", "Decision", "Figures", "Consequences", "Not taken, and what did not work"]
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    offenders = []
    for number, page in enumerate(DECISIONS, 1):
        text = page.read_text()
        title = text.split("\n")[0].removeprefix("# ")
        if not (page.name.startswith(f"{number:03d}-") and title.startswith(f"{number:03d}. ")):
            offenders.append(f"{page.name}: number {number:03d} in name and title")
        dated = re.search(r"^Decided \d{4}-\d\d-\d\d", text, re.MULTILINE)
        if re.findall(r"^## (.*)$", text, re.MULTILINE) != parts or not dated:
            offenders.append(f"{page.name}: `Decided DATE`, then {', '.join(parts)}")
        if text.count("\n") > 60:
            offenders.append(f"{page.name} is longer than a page")
        if f"]({page.name}) | {title[5:]} |" not in index:
            offenders.append(f"{page.name} does not stand in docs/decisions/README.md as `{title[5:]}`")
    assert DECISIONS and not offenders, "\n".join(offenders)


def test_the_ways_through_the_code_have_twelve_stops_at_most_and_no_file_twice() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert text.count("\n") <= 90, "two screens"
    ways = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(ways) == 3
    for way in ways:
        stops = re.findall(r"^\d+\. `([^`]+)`", way, re.MULTILINE)
        assert 5 < len(stops) <= 12 and len(set(stops)) == len(stops), way.split("\n")[0]
        assert [stop for stop in stops if not (ROOT / "src" / "puna" / stop).exists()] == []
