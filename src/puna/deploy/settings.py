"""How an endpoint is run: what a deploy may set and a patch may change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.errors import UsageError
from puna.spec import fields

# These act at once; a change of any other setting is a new revision, rolled out like a deploy.
LIVE = frozenset({"min_replica", "max_replica", "scale_down_delay_s", "inference_time_s", "max_queue", "replace"})
NO_GPU = frozenset({"cpu", "none"})


@dataclass(frozen=True)
class Settings:
    """Scaling, limits, machine and environment of one endpoint."""

    min_replica: int = 0
    max_replica: int = 1
    scale_down_delay_s: float = 600
    """Idle time after which a replica above `min_replica` goes."""
    inference_time_s: float = 180
    """Time limit of one request, and of the drain of a replica."""
    container_concurrency: int = 0
    """Requests that one replica runs at once; 0 lets the worker choose."""
    max_queue: int = 100
    """Requests that may wait; more are refused with 429."""
    is_dedicated: bool = True
    """A whole GPU; half of one when false."""
    gpu_type: str = ""
    """`cpu` or `none`: no GPU. Anything else: one of the machine's GPUs, or the CPU where there is none."""
    startup_timeout_s: float = 900
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of secret sets whose values join the app's environment."""
    replace: bool = False
    """The serving revision may be stopped first when there is no room for both."""

    def __post_init__(self) -> None:
        _check(0 <= self.min_replica <= self.max_replica, "min_replica must lie in 0 to max_replica")
        _check(1 <= self.max_replica <= 1000, "max_replica must lie in 1 to 1000", "to stop serving: `puna deactivate`")
        _check(0 <= self.scale_down_delay_s <= 86400, "scale_down_delay_s must lie in 0 to 86400")
        _check(0 < self.inference_time_s <= 7200, "inference_time_s must lie in 0 to 7200")
        _check(0 <= self.container_concurrency <= 1000, "container_concurrency must lie in 0 to 1000")
        _check(0 <= self.max_queue <= 100_000, "max_queue must lie in 0 to 100000")
        _check(self.startup_timeout_s > 0, "startup_timeout_s must be over 0")
        for name, value in self.env.items():
            _check(
                bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and "\0" not in str(value),
                f"env has `{name}`, which cannot be the name of an environment variable",
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """Settings from JSON values, over `base`; environment values that are numbers become text.

        Raises:
            UsageError: an unknown key (with the nearest valid one) or a value that makes no sense.
        """
        merged = {**(base.as_dict() if base else {}), **{k: v for k, v in values.items() if v is not None}}
        settings = fields.build(cls, merged, "settings", UsageError)
        return dataclasses.replace(settings, env={str(k): str(v) for k, v in settings.env.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "secrets": list(self.secrets)}

    @property
    def launch(self) -> dict[str, Any]:
        """The settings that belong to a revision: those that a running replica cannot change."""
        return {key: value for key, value in self.as_dict().items() if key not in LIVE}

    @property
    def needs_gpu(self) -> bool:
        """Whether it asks for a GPU where there is one."""
        return self.gpu_type.lower() not in NO_GPU

    @property
    def gpu_fraction(self) -> float:
        """The share of a GPU that one replica takes."""
        return 1.0 if self.is_dedicated else 0.5


def _check(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise UsageError(message, hint)


def check_name(name: str, what: str) -> None:
    """Names stand in URLs, paths and metrics: lower-case letters, digits and dashes, at most 48.

    Raises:
        UsageError: the name is something else.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", name):
        raise UsageError(
            f"{what} {name!r} is not a name", "use lower-case letters, digits and dashes, at most 48, e.g. my-app"
        )
