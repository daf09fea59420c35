"""The console's files: strict headers, nothing inline, nothing from elsewhere, and only paths that the API has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from control.conftest import control_of
from puna.console.assets import FOLDER
from puna.control.api.app import create_app
from puna.control.store.store import Store
from puna.home import Home

FILES = sorted(p for p in FOLDER.rglob("*") if p.suffix in (".js", ".css", ".html", ".svg"))
NAMES = ("http://www.w3.org/2000/svg", "https://github.com/", "https://gitlab.com/", "https://git.example.com/")
"""Addresses that stand there as words: the page asks none of them."""
NAMED = {p: p.relative_to(FOLDER).as_posix() for p in FILES}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TestClient]:
    home = Home(tmp_path)
    store = Store(f"sqlite:///{home.database}")
    with TestClient(create_app(control_of(store, home))) as client:
        yield client
    store.close()


@pytest.mark.parametrize("path", FILES, ids=NAMED.__getitem__)
def test_a_file_is_short_and_names_no_other_place(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    allowed = text
    for known in NAMES:
        allowed = allowed.replace(known, "")
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", allowed), "an address of another machine"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_the_page_holds_no_inline_script_or_style() -> None:
    page = (FOLDER / "index.html").read_text()
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))
    assert "<style" not in page and not re.search(r"\s(style|on\w+)=", page)


def test_the_page_forbids_all_but_its_own_files_and_is_asked_for_anew(api: TestClient) -> None:
    page = api.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-cache"
    assert api.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304


def test_every_file_that_the_page_names_is_there_and_may_be_kept(api: TestClient) -> None:
    named = re.findall(r'(?:href|src)="(/console/[^"]+)"', api.get("/").text)
    assert len(named) > 10
    for path in named:
        reply = api.get(path)
        assert reply.status_code == 200 and "immutable" in reply.headers["cache-control"], path
        assert "content-security-policy" in reply.headers
    assert api.get("/console/0000000000000000/app.js").status_code == 404
    assert api.get(named[0].rsplit("/", 1)[0] + "/../assets.py").status_code == 404


def test_every_path_that_a_script_calls_is_one_of_the_api(api: TestClient) -> None:
    known = {re.sub(r"\{[^}]+\}", "X", path) for path in api.get("/api/openapi.json").json()["paths"]}
    called = set()
    for path in FILES:
        if path.suffix == ".js":
            text = re.sub(r"\$\{part\([^)]*\)\}|\$\{(verb|digest)\}", "X", path.read_text())
            called |= set(re.findall(r"""api\.\w+\(["`](/[^"`?]*)""", text))
            called |= {p.removeprefix("/api/v1") for p in re.findall(r"""["`](/api/v1/[^"`?]*)""", text)}
    called -= {"$", "/api/v1$"}
    assert len(called) > 15
    for path in called:
        options = (
            [path] if not path.endswith("endpoints/X/X") else [f"/endpoints/X/{v}" for v in ("activate", "rebuild")]
        )
        for option in options:
            assert "$" in option or f"/api/v1{option}" in known, option


def test_a_link_opens_once_and_only_the_local_user_makes_one(api: TestClient) -> None:
    token = api.post("/api/v1/console/links").json()["url"].rsplit("/", 1)[1]
    front = {"x-puna-forwarded": "1"}
    foreign = {**front, "origin": "http://elsewhere.example"}
    assert api.post("/api/v1/console/sessions", json={"token": token}, headers=foreign).status_code == 403
    made = api.post("/api/v1/console/sessions", json={"token": token}, headers=front)
    assert made.status_code == 201 and made.json()["scope"] == ["admin"] and made.json()["expires"]
    assert api.post("/api/v1/console/sessions", json={"token": token}, headers=front).status_code == 401
    bearer = {**front, "authorization": f"Bearer {made.json()['key']}"}
    assert api.post("/api/v1/console/links", headers=bearer).status_code == 403
    assert api.get("/api/v1/endpoints", headers=bearer).status_code == 200
