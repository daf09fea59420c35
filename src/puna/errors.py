"""Every error Puna raises on purpose: one tree, each with a hint, an exit code and an HTTP status.

PunaError
├── UsageError                what the user wrote is wrong (exit 2, HTTP 400)
│   ├── RecipeError           a training recipe
│   ├── ProjectError          inferless.yaml, app.py or the project folder
│   ├── RuntimeSpecError      inferless-runtime-config.yaml
│   ├── SchemaError           input_schema.py, or a request that does not fit it
│   ├── DataError             a dataset, a row of it, a chat template
│   ├── KeyReusedError        an idempotency key that came before with another request (HTTP 422)
│   ├── MethodError           a path that does not take this method (HTTP 405), with those it takes
│   └── EncodingError         a body in an encoding that nothing here reads (HTTP 415)
├── NotFoundError             the named thing does not exist (exit 3, HTTP 404)
├── ConflictError             the thing is in a state that forbids this (exit 4, HTTP 409)
│   └── InFlightError         the same call, by its idempotency key, is being answered
├── UnauthorizedError         no key or an unknown key (exit 5, HTTP 401)
│   └── ForbiddenError        a key without the right to this (HTTP 403)
├── StageError                a stage ran and failed (exit 1, HTTP 500)
│   ├── TrainError            training, or a plan that does not fit the machine
│   ├── MergeError            merging or verifying
│   ├── PublishError          the registry or the hub
│   ├── BuildError            an environment, a bundle
│   ├── AppError              the user's app failed to import, initialise or infer
│   └── DeployError           a rollout
├── MachineError              the machine refuses: port in use, disk full (exit 6, HTTP 507)
└── ServeError                one request cannot be served (exit 7)
    ├── QueueFullError        HTTP 429, with retry_after_s
    │   └── RateLimitError    a key has asked for more than it may
    ├── DeadlineError         HTTP 504
    ├── ReplicaDiedError      HTTP 502
    │   └── PoisonError       replicas die of this very request (HTTP 500)
    ├── UnavailableError      HTTP 503
    │   └── NotYetError       nothing is wrong with the request: it may come back in a second
    └── TooLargeError         HTTP 413
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class PunaError(Exception):
    """An error: what happened to which thing (`message`), and the next command to type (`hint`)."""

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        """`detail` is evidence shown under the message: a traceback, the last log lines."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    @property
    def code(self) -> str:
        """A stable name for programs: `RecipeError` -> `recipe`, `NotFoundError` -> `not_found`."""
        name = type(self).__name__.removesuffix("Error") or "Puna"
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")

    def as_json(self) -> dict[str, object]:
        """The body of an error reply on `/api`."""
        body = {"code": self.code, "message": self.message, "hint": self.hint}
        return {"error": body | ({"detail": self.detail} if self.detail else {})}


class UsageError(PunaError):
    """An error in what the user wrote."""

    exit_code = 2
    http_status = 400


class RecipeError(UsageError):
    """A training recipe is wrong."""


class ProjectError(UsageError):
    """inferless.yaml, app.py or the project folder is wrong."""


class RuntimeSpecError(UsageError):
    """inferless-runtime-config.yaml is wrong."""


class SchemaError(UsageError):
    """input_schema.py is wrong, or a request does not fit it."""


class DataError(UsageError):
    """A dataset, a row of it or a chat template is wrong."""


class KeyReusedError(UsageError):
    """An idempotency key came before, with another request."""

    http_status = 422


class MethodError(UsageError):
    """The path is known and does not take this method."""

    http_status = 405

    def __init__(self, message: str, hint: str = "", detail: str = "", *, allow: Iterable[str] = ()) -> None:
        """`allow` are the methods that it takes."""
        super().__init__(message, hint, detail)
        self.allow = tuple(allow)


class EncodingError(UsageError):
    """The body is in an encoding that nothing here reads."""

    http_status = 415


class NotFoundError(PunaError):
    """The named thing does not exist."""

    exit_code = 3
    http_status = 404


class ConflictError(PunaError):
    """The thing is in a state that forbids this."""

    exit_code = 4
    http_status = 409


class InFlightError(ConflictError):
    """The same call, by its idempotency key, is being answered: come back in a second."""


class UnauthorizedError(PunaError):
    """No key, or an unknown one."""

    exit_code = 5
    http_status = 401


class ForbiddenError(UnauthorizedError):
    """The key has no right to this."""

    http_status = 403


class StageError(PunaError):
    """A stage ran and failed."""


class TrainError(StageError):
    """Training failed, or the plan does not fit the machine."""


class MergeError(StageError):
    """Merging or verifying failed."""


class PublishError(StageError):
    """The registry or the hub refused."""


class BuildError(StageError):
    """An environment or a bundle could not be built."""


class AppError(StageError):
    """The user's app failed to import, initialise or infer."""


class DeployError(StageError):
    """A rollout failed; the revision before it, if any, still serves."""


class MachineError(PunaError):
    """The machine refuses: port in use, disk full, no such device."""

    exit_code = 6
    http_status = 507


class ServeError(PunaError):
    """One request cannot be served."""

    exit_code = 7


class QueueFullError(ServeError):
    """Too many requests wait; come back after `retry_after_s`."""

    http_status = 429

    def __init__(self, message: str, retry_after_s: int = 1, hint: str = "") -> None:
        super().__init__(message, hint or f"retry after {retry_after_s} s, or raise max_replica")
        self.retry_after_s = retry_after_s


class RateLimitError(QueueFullError):
    """A key has asked for more than it may; it can come back after `retry_after_s`, a whole number, at least 1."""

    def __init__(self, message: str, retry_after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, max(1, math.ceil(retry_after_s)))
        self.hint = hint or f"retry after {self.retry_after_s} s"


class DeadlineError(ServeError):
    """The request's time ran out."""

    http_status = 504


class ReplicaDiedError(ServeError):
    """The replica died after its reply had begun, or twice before."""

    http_status = 502


class PoisonError(ReplicaDiedError):
    """Replicas have died of this very request: it is given to no more of them for a while."""

    http_status = 500


class UnavailableError(ServeError):
    """No replica can take the request."""

    http_status = 503


class NotYetError(UnavailableError):
    """Nothing is wrong with the request: it may come back after `retry_after_s`."""

    retry_after_s = 1


class TooLargeError(ServeError):
    """The request's body is over the limit."""

    http_status = 413


def kind_of(code: str, status: int) -> type[PunaError]:
    """The kind of error that a reply stands for: by its code, else the most general one of its HTTP status."""
    kinds = _family(PunaError)
    by_code, by_status = {kind("").code: kind for kind in kinds}, {kind.http_status: kind for kind in reversed(kinds)}
    return by_code.get(code) or by_status.get(status, PunaError)


def _family(kind: type[PunaError]) -> list[type[PunaError]]:
    """A kind, and those below it, each behind the one that it is a kind of."""
    return [kind, *(one for below in kind.__subclasses__() for one in _family(below))]


def first_line(error: Exception) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(word: str, valid: Iterable[str]) -> str:
    """`did you mean ...?` for a misspelt key, or an empty string when nothing is near."""
    found = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"did you mean `{found[0]}`?" if found else ""
