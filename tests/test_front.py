"""Where callers come in, and what they type."""

import pytest

from puna.errors import UsageError
from puna.front import Front


def test_the_address_is_what_is_listened_on() -> None:
    assert Front().address(81) == "http://127.0.0.1:81" and Front("::1").address(81) == "http://[::1]:81"


def test_what_callers_type_is_a_whole_site() -> None:
    assert Front().public_url == "" and Front(url="https://puna.example/").public_url == "https://puna.example"
    for said in ("puna.example", "https://puna.example/below", "ftp://puna.example", "https://"):
        with pytest.raises(UsageError, match="no address of a site"):
            Front(url=said).public_url  # noqa: B018  (reading it checks it)
