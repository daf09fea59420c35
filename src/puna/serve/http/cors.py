"""Pages of other sites that may call inference: only where `puna up --cors-origin` names them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from puna.serve.http.asgi import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]
EXPOSED = (
    "x-request-id x-puna-request-id x-puna-queue-ms x-puna-wake-ms x-puna-infer-ms x-puna-tier x-puna-revision "
    "retry-after"
)
"""Headers of replies that such a page may read."""
PREFLIGHT_S = 600


def allowing(app: App, origins: Sequence[str]) -> App:
    """`app` with CORS for these origins; `app` itself when there are none.

    Keys travel in `Authorization` and never in cookies, so credentials stay off and `*` may stand for all origins.
    """
    if not origins:
        return app
    # Imported here: it costs a gateway's start 30 ms, which most have no use for.
    from starlette.middleware.cors import CORSMiddleware

    middleware: Any = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "HEAD"),
        allow_headers=("*",),
        expose_headers=EXPOSED.split(),
        max_age=PREFLIGHT_S,
    )
    return middleware  # type: ignore[no-any-return]
