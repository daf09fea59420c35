"""An endpoint's settings: type, range, default, meaning and spellings of each, once.

inferless.yaml, recipes, the API and its document, the options of commands, what is stored and the docs derive from
`Settings`: a new one is a field here and the code that acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

from annotated_types import Ge, Gt, Le
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from puna import names
from puna.config.reading import Number, Origin, Whole, first, shown
from puna.config.repository import Repository
from puna.errors import UsageError

API = Origin(prefix="settings.")
NO_GPU = frozenset({"cpu", "none"})
GIT = frozenset({"url", "branch", "folder", "credential", "commit"})
MASK = "***"
"""Stands for a value of `env` that is not shown; sent back, it means the value as it is."""


@dataclass(frozen=True)
class Setting:
    """A setting beside its type and range: its spellings, and when it acts."""

    file: str = ""
    """Its key under `configuration` in inferless.yaml and in the platform's API; empty: they have none."""
    option: str = ""
    """Its options of `puna deploy`, as typer writes them."""
    is_live: bool = False
    """Acts at once; a change of any other is a new revision, rolled out like a deploy."""
    least: float = 0
    """0 has a meaning of its own; what is not 0 is at least this."""
    hint: str = ""
    """Said to those who leave the range."""


class Range(NamedTuple):
    """The numbers that a setting takes."""

    low: float
    high: float
    is_over: bool = False
    """`low` itself is none: a time limit of nothing lets nothing be done."""
    least: float = 0

    def __str__(self) -> str:
        span = f"{self.least or self.low:g} to {self.high:.12g}"
        return f"over {self.low:g}, to {self.high:.12g}" if self.is_over else f"0, or {span}" if self.least else span

    def allows(self, value: float) -> bool:
        """True when it takes `value`."""
        low = self.least if value else self.low
        return (low < value if self.is_over else low <= value) and value <= self.high

    def nearest(self, value: float, default: float) -> float:
        """`value`, or the end of the range beyond which it lies; `default` where an end is open."""
        if self.allows(value):
            return value
        if value > self.high:
            return self.high
        return default if self.is_over else self.least if value > 0 else self.low


def _origin(info: ValidationInfo) -> Origin:
    return info.context if isinstance(info.context, Origin) else API


def _text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _mountable(path: str) -> bool:
    """An absolute path outside the kernel's own folders, or empty for the platform's place."""
    parts = path.split("/")
    own = {"", "proc", "sys", "dev"}
    return not path or (len(parts) > 1 and not parts[0] and parts[1] not in own and not {"..", "."} & set(parts))


class Settings(BaseModel):
    """Scaling, limits, machine and environment of one endpoint."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, use_attribute_docstrings=True, title="Settings"
    )

    min_replica: Annotated[
        int, Field(ge=0, le=1000), Whole, Setting("min_replica", "--min-replica --min", is_live=True)
    ] = 0
    """Replicas that are kept while nobody calls."""
    max_replica: Annotated[
        int,
        Field(ge=1, le=1000),
        Whole,
        Setting("max_replica", "--max-replica --max", is_live=True, hint="to stop serving: `puna deactivate`"),
    ] = 1
    """Replicas at most."""
    scale_down_delay_s: Annotated[
        FiniteFloat,
        Field(ge=0, le=86400),
        Number,
        Setting("scale_down_delay", "--scale-down-delay --scale-down-timeout", is_live=True),
    ] = 600.0
    """Idle seconds after which a replica above `min_replica` sleeps or goes."""
    evict_after_s: Annotated[
        FiniteFloat,
        Field(ge=0, le=31_536_000),
        Number,
        Setting("evict_after", "--evict-after", is_live=True, hint="0: none sleeps; at most a year"),
    ] = 3600.0
    """Seconds that a replica sleeps before it goes, when its app can sleep; 0: none sleeps, it goes at once."""
    inference_time_s: Annotated[
        FiniteFloat,
        Field(gt=0, le=7200),
        Number,
        Setting("inference_time", "--inference-time --inference-timeout", is_live=True),
    ] = 180.0
    """Seconds that one request may take."""
    drain_timeout_s: Annotated[
        FiniteFloat,
        Field(ge=0, le=7200),
        Number,
        Setting("drain_timeout", "--drain-timeout", is_live=True, hint="0: as long as a request may take"),
    ] = 0.0
    """Seconds that a replica which is not wanted has to end the requests that it runs; 0: as long as one may take."""
    container_concurrency: Annotated[
        int,
        Field(ge=0, le=100),
        Whole,
        Setting("container_concurrency", "--container-concurrency", hint="0: the worker chooses"),
    ] = 0
    """Requests that one replica runs at once; 0 lets the worker choose."""
    max_queue: Annotated[int, Field(ge=0, le=100_000), Whole, Setting(option="--max-queue", is_live=True)] = 100
    """Requests that may wait; more are refused with 429."""
    is_dedicated: Annotated[bool, Field(strict=True), Setting("is_dedicated", "--dedicated/--fractional")] = True
    """A whole GPU; half of one when false."""
    gpu_type: Annotated[str, Setting("gpu_type", "--gpu")] = ""
    """`cpu` or `none`: no GPU. Anything else: one of the machine's GPUs, or the CPU where there is none."""
    vcpu: Annotated[
        FiniteFloat, Field(ge=0, le=4096), Number, Setting("vcpu", "--vcpu", hint="0: the cores of its share")
    ] = 0.0
    """Cores of one replica; 0: those that come with its part of a GPU, or all."""
    ram_gib: Annotated[FiniteFloat, Field(ge=0, le=65536), Number, Setting("ram", "--ram", least=0.1)] = 0.0
    """Host memory of one replica in GiB, which is ended when it has more; 0: what comes with its part of a GPU, or
    all."""
    startup_timeout_s: Annotated[
        FiniteFloat,
        Field(gt=0, le=7200),
        Number,
        Setting(option="--startup-timeout", hint="at most two hours: a build and a place on a GPU are held meanwhile"),
    ] = 900.0
    """Seconds that a replica's start may take, and `initialize` when the app is tried."""
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of the app's environment."""
    secrets: tuple[str, ...] = ()
    """Names of secret sets whose values join the app's environment."""
    volumes: dict[str, str] = Field(default_factory=dict)
    """Volume -> where the app finds it; empty for `/var/nfs-mount/<name>`."""
    zygote: Annotated[bool, Field(strict=True), Setting("zygote", "--zygote/--no-zygote", is_live=True)] = True
    """A process with the app's imports done is kept, which replicas are forked from: memory for faster cold starts."""
    replace: Annotated[bool, Field(strict=True), Setting(option="--replace", is_live=True)] = False
    """The serving revision may be stopped first when there is no room for both."""
    git: Annotated[dict[str, str], Setting(is_live=True)] = Field(default_factory=dict)
    """Where its source comes from, when that is a repository: `url`, `branch`, `folder`, `credential` (a secret set's
    name) and the `commit` that was fetched last."""
    auto_rebuild: Annotated[
        bool, Field(strict=True), Setting(option="--auto-rebuild/--no-auto-rebuild", is_live=True)
    ] = False
    """A push to the repository, told by a webhook or found by asking, is fetched, built and rolled out."""
    poll_s: Annotated[
        FiniteFloat,
        Field(ge=0, le=604_800),
        Number,
        Setting(option="--poll", is_live=True, least=30, hint="0: never; at most a week"),
    ] = 0.0
    """Seconds between two questions to the repository for a new commit; 0: never, a webhook tells."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        origin = _origin(info)
        try:
            made = handler(values)
        except ValidationError as problem:
            raise _refusal(problem, origin) from None
        if made.min_replica > made.max_replica:
            least = origin.words.get("min_replica", "min_replica")
            text = f"{least} must lie in 0 to max_replica, {made.max_replica}, and is {made.min_replica}"
            raise origin.error(text, "raise max_replica")
        return made

    @field_validator("ram_gib", "poll_s")
    @classmethod
    def _zero_or_enough(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name)
        if not RANGES[name].allows(value):
            raise _outside(name, value, _origin(info))
        return value

    @field_validator("env", mode="before")
    @classmethod
    def _variables(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value  # pydantic's to refuse
        error = _origin(info).error
        for name, text in value.items():
            if isinstance(text, Mapping | list):
                raise error(f"`env` must hold text, not {shown(text)}", "put quotes around it")
            names.check("variable", str(name), what="env:", error=error)
            if "\0" in str(text):
                raise error(f"env: the value of `{name}` has a character that no environment can hold")
        return {str(name): _text(text) for name, text in value.items()}

    @field_validator("volumes", mode="before")
    @classmethod
    def _mounts(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value
        error = _origin(info).error
        for name, path in value.items():
            names.check("volume", str(name), error=error)
            if not _mountable(str(path or "")):
                raise error(f"a volume cannot be mounted at {shown(path)}", "e.g. /var/nfs-mount/my-volume")
        return {str(name): str(path or "") for name, path in value.items()}

    @field_validator("git")
    @classmethod
    def _place(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if value and not (set(value) <= GIT and value.get("url")):
            raise _origin(info).error("git must have a `url`")
        return value

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> Self:
        """Take settings as the store keeps them, judged when they were written: nothing of another version is refused.

        Keys that are none today are left out, numbers outside today's ranges become the nearest that is inside.
        """
        known = {name: _today(name, value) for name, value in values.items() if name in cls.model_fields}
        return cls.model_construct(**known | {"secrets": tuple(known.get("secrets") or ())})

    def replaced(self, **values: Any) -> Self:
        """Return them with other values, which are known to be good."""
        return self.model_copy(update=values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain = {name: dict(value) if isinstance(value, dict) else value for name, value in self}
        return plain | {"secrets": list(self.secrets)}

    @property
    def launch(self) -> dict[str, Any]:
        """The settings that belong to a revision: those that a running replica cannot change."""
        return {name: value for name, value in self.as_dict().items() if name not in LIVE}

    @property
    def needs_gpu(self) -> bool:
        """True when it asks for a GPU where there is one."""
        return self.gpu_type.lower() not in NO_GPU

    @property
    def gpu_fraction(self) -> float:
        """The share of a GPU that one replica takes."""
        return 1.0 if self.is_dedicated else 0.5


def setting(name: str) -> Setting:
    """Return the spellings of a setting, and when it acts."""
    return next((one for one in Settings.model_fields[name].metadata if isinstance(one, Setting)), Setting())


def _range(name: str) -> Range | None:
    ends: dict[type, Any] = {type(one): one for one in Settings.model_fields[name].metadata}
    if Le not in ends:
        return None
    is_over = Gt in ends
    return Range(ends[Gt].gt if is_over else ends[Ge].ge, ends[Le].le, is_over, setting(name).least)


DEFAULTS = Settings()
RANGES: Mapping[str, Range] = {name: found for name in Settings.model_fields if (found := _range(name)) is not None}
LIVE = frozenset(name for name in Settings.model_fields if setting(name).is_live)
FILE_KEYS: Mapping[str, str] = {setting(name).file: name for name in Settings.model_fields if setting(name).file}
"""Key under `configuration` in inferless.yaml -> setting."""


def check(values: Mapping[str, Any], origin: Origin) -> Settings:
    """Judge some settings, whatever the others will be; null is absent.

    Raises:
        UsageError: an unknown key (with the nearest valid one) or a value that makes no sense.
    """
    said = {name: value for name, value in values.items() if value is not None}
    return Settings.model_validate({"max_replica": RANGES["max_replica"].high, **said}, context=origin)


def parse(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Read settings that were sent over those that were there; null is absent.

    Raises:
        UsageError: as `check`.
    """
    before = base.as_dict() if base else {}
    said = {name: value for name, value in values.items() if value is not None}
    if said.get("git"):
        said["git"] = parse_git(said["git"], before.get("git", {}))
    made = Settings.model_validate(before | said, context=API)
    kept = before.get("env", {})
    return made.replaced(env={k: kept.get(k, MASK) if v == MASK else v for k, v in made.env.items()})


def masked_env(env: Mapping[str, str]) -> dict[str, str]:
    """Environment values, with those hidden whose names sound like credentials."""
    hidden = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
    return {k: MASK if any(word in k.upper() for word in hidden) else v for k, v in env.items()}


def parse_git(values: Any, before: Mapping[str, str]) -> dict[str, str]:
    """Read where the source comes from, with what is not said as it was; the commit is for the fetch to say.

    Raises:
        UsageError: it is no repository, branch or folder, or something else was said.
    """
    known = sorted(GIT - {"commit"})
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        raise UsageError(f"`git` has {', '.join(known)} and nothing else", 'e.g. {"url": "https://..."}')
    said = {str(key): str(value or "") for key, value in values.items()}
    now = {key: value for key, value in ({**before, **said}).items() if value}
    Repository(now.get("url", ""), now.get("branch", ""), now.get("folder", ""))
    is_same = all(now.get(key) == before.get(key) for key in ("url", "branch", "folder"))
    return now if is_same else {key: value for key, value in now.items() if key != "commit"}


def at_most(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring values down to what is the most today."""
    return {name: min(value, RANGES[name].high) if name in RANGES else value for name, value in values.items()}


def _today(name: str, value: Any) -> Any:
    if name in RANGES and isinstance(value, int | float):
        return RANGES[name].nearest(value, getattr(DEFAULTS, name))
    return value


def _refusal(problem: ValidationError, origin: Origin) -> UsageError:
    said = first(problem)
    name = str(said["loc"][0])
    is_outside = said["type"] in ("greater_than", "greater_than_equal", "less_than_equal", "finite_number")
    return _outside(name, said["input"], origin) if is_outside else origin.refusal(problem, Settings)


def _outside(name: str, value: float, origin: Origin) -> UsageError:
    range_ = RANGES[name]
    must = "be" if range_.least else "lie in"
    text = f"{origin.words.get(name, name)} must {must} {range_}, and is {float(value):.12g}"
    return origin.error(text, setting(name).hint)
