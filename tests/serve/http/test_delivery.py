"""What a stream that has begun is told of a reply that came in one piece."""

from __future__ import annotations

import pytest

from puna.serve.dispatch.worker_connection import Reply
from puna.serve.http.delivery import _error_of


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "bad luck"}', "bad luck"),
        (b'{"error": {"message": "no such model", "code": "x"}}', "no such model"),
        (b'{"outputs": []}', "the app did not stream its reply (status 200)"),
        (b"[1]", "the app did not stream its reply (status 200)"),
        (b"no JSON", "the app did not stream its reply (status 200)"),
        (b"", "the app did not stream its reply (status 200)"),
    ],
)
def test_the_error_of_a_reply_is_its_text_or_that_it_was_not_streamed(body: bytes, said: str) -> None:
    assert _error_of(Reply(200, body)) == said
