"""The bundle that a replica runs: the app's files and a Hugging Face cache view of its models, in hard links."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.artifacts import ADAPTER_BASE, MANIFEST, SHORT, Artifact, Bundle, Model, Source, drafting, link, write_json
from puna.config import project
from puna.errors import NotFoundError, ProjectError, nearest
from puna.home import Home
from puna.packaging.environment import Environment
from puna.packaging.surroundings import passed, path_after

ADAPTERS = "adapters.json"
_COMMIT = 40  # hex digits: libraries take a snapshot folder of this length for a commit
_KEPT = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_HUB = "HF_ENDPOINT"  # where names are looked for when it is another hub than the public one


@dataclass(frozen=True)
class ModelRef:
    """One version of a published model, as the registry resolved it."""

    name: str
    """`owner/name`, without version or alias."""
    version: int
    digest: str
    path: Path
    base: Model | None = None
    """Of an adapter: the model that it is served on. The name then leads to that model's files."""
    rank: int = 0
    """Of an adapter: its rank."""


def models_named(source: Source, known: set[str]) -> list[str]:
    """The published models that the app needs: `models:` in inferless.yaml, and strings in its Python files.

    `known` are the names in the registry. What is returned may carry a version or an alias (`acme/chat:2`),
    which only `models:` can: there it settles the version that the plain name in the code means.

    Raises:
        ProjectError: `models:` has a name that is not published.
    """
    files = source.path / "files"
    pinned = {}
    for ref in project.load(files).models:
        name = ref.partition("@")[0].partition(":")[0]
        if name not in known:
            hint = nearest(name, known) or f"puna publish RUN {name}"
            raise ProjectError(f"inferless.yaml: `models` has {ref}, which is not published", hint)
        pinned[name] = ref
    named = {text for path in sorted(files.rglob("*.py")) for text in _strings(path)} & known
    return [pinned.get(name, name) for name in sorted(named | set(pinned))]


def _strings(path: Path) -> set[str]:
    """Every string constant of a Python file; a file that is none has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def bundle(source: Source, environment: Environment, models: Sequence[ModelRef], home: Home) -> Bundle:
    """Put together what a replica needs; the same parts make the same bundle, which is not made twice.

    Raises:
        NotFoundError: a model's folder is missing.
        MachineError: the disk is full.
    """
    parts = [_part(model) for model in sorted(models, key=lambda model: model.name)]
    shared = _shared_base(source, models)
    _check_origins(source, models)
    with drafting("bundle", home.bundles) as draft:
        _link(source.path / "files", draft.path / "app")
        draft.known |= {n.replace("files/", "app/", 1): d for n, d in source.manifest.files.items()}
        (draft.path / "hub").mkdir()
        for model in models:
            draft.known |= _hub_view(model, draft.path)
            if model.base is not None:
                draft.known |= _adapter(model, draft.path)
        if any(model.base for model in models):
            write_json(draft.path / ADAPTERS, _adapters(models, is_shared=bool(shared)))
        about: dict[str, Any] = {"source": source.digest, "environment": environment.digest, "models": parts} | shared
        write_json(draft.path / "bundle.json", about)
        draft.made_from = {"source": source.digest, "environment": environment.digest}
        draft.made_from |= {f"model:{model.name}": model.digest for model in models}
        draft.config = about
    return Bundle.open(draft.final)


def _check_origins(source: Source, models: Sequence[ModelRef]) -> None:
    """Check that what is linked into a bundle is what its digests say."""
    if why := source.damage():
        raise ProjectError(f"the source {source.digest[:SHORT]} is damaged: {why}", "`puna deploy` it once more")
    for model in models:
        for path in (model.path, *([model.base.path] if model.base else [])):
            if (path / MANIFEST).is_file() and (why := Artifact.open(path).damage()):
                ref = f"{model.name}:{model.version}"
                raise NotFoundError(f"the files of {ref} are damaged: {why} in {path}", "publish it again")


def _part(model: ModelRef) -> dict[str, Any]:
    part: dict[str, Any] = {"name": model.name, "version": model.version, "digest": model.digest}
    return part | ({"base": model.base.digest} if model.base else {})


def _shared_base(source: Source, models: Sequence[ModelRef]) -> dict[str, str]:
    """With `serve: adapter`, the digest of the one model that every adapter of this app is served on."""
    if project.load(source.path / "files").serve != "adapter":
        return {}
    bases = {model.base.digest: model.name for model in models if model.base}
    if len(bases) != 1:
        what = f"adapters of different bases: {', '.join(bases.values())}" if bases else "no published adapter"
        raise ProjectError(
            f"inferless.yaml says `serve: adapter`, and the app names {what}",
            "puna publish RUN owner/name --adapter, and name that in app.py",
        )
    return {ADAPTER_BASE: next(iter(bases))}


def _adapter(model: ModelRef, root: Path) -> dict[str, str]:
    """The adapter's own files under `adapters/owner--name`."""
    folder = Path("adapters", model.name.replace("/", "--"))
    _link(model.path, root / folder)
    return {f"{folder.as_posix()}/{n}": d for n, d in Artifact.open(model.path).manifest.files.items()}


def _adapters(models: Sequence[ModelRef], *, is_shared: bool) -> dict[str, Any]:
    """The worker's table of adapters: which names are adapters, and whether requests may bring others."""
    named = {m.name: {"path": f"adapters/{m.name.replace('/', '--')}", "rank": m.rank} for m in models if m.base}
    return {"adapters": named, "takes_others": is_shared}


def _hub_view(model: ModelRef, root: Path) -> dict[str, str]:
    """`models--owner--name` with the one snapshot that `main` names; `{relative path: sha256}` of its files."""
    if not model.path.is_dir():
        raise NotFoundError(f"the files of {model.name}:{model.version} are gone: {model.path}", "publish it again")
    origin, digest = (model.base.path, model.base.digest) if model.base else (model.path, model.digest)
    folder = root / "hub" / ("models--" + model.name.replace("/", "--"))
    commit = digest[:_COMMIT]
    _link(origin, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    if not (origin / MANIFEST).is_file():
        return {}
    prefix = (folder / "snapshots" / commit).relative_to(root).as_posix()
    return {f"{prefix}/{name}": digest for name, digest in Artifact.open(origin).manifest.files.items()}


def _link(origin: Path, target: Path) -> None:
    """A tree of hard links; copies where the disk is another."""
    for path in sorted(origin.rglob("*")):
        name = path.relative_to(origin)
        if path.is_file() and name.as_posix() != MANIFEST:
            link(path.resolve(), target / name)


def app_env(bundle: Bundle, *, extra: Mapping[str, str]) -> dict[str, str]:
    """Every environment variable of the app: its models, its caches, `extra` (settings and secrets), nothing of ours.

    With models in the bundle the Hugging Face libraries stay offline, so that a name can only mean the published
    model; `HF_HUB_OFFLINE: "0"` in the app's `env` lets it download others as well.
    """
    home = Home(bundle.path.parent.parent)
    own = home.caches / bundle.digest[:SHORT]
    venv = home.environments / str(bundle.manifest.made_from["environment"])[:SHORT] / "venv"
    # Downloads are shared by all apps of this home: a new version of an app must not fetch 16 GB again.
    hugging_face = home.caches / "huggingface"
    env = passed(*_KEPT, _HUB) | {
        "PATH": path_after(venv),
        "VIRTUAL_ENV": str(venv),
        "HOME": str(own / "home"),
        "XDG_CACHE_HOME": str(own / "cache"),
        "HF_HOME": str(hugging_face),
        "HF_HUB_CACHE": str(hugging_face / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TORCH_HOME": str(own / "torch"),
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "TRITON_CACHE_DIR": str(own / "triton"),
        "CUDA_CACHE_PATH": str(own / "cuda"),
        "NUMBA_CACHE_DIR": str(own / "numba"),
        "VLLM_CACHE_ROOT": str(own / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env.setdefault("LANG", "C.UTF-8")
    if (bundle.path / ADAPTERS).is_file():
        env["PUNA_ADAPTERS"] = str(bundle.path / ADAPTERS)
    if bundle.manifest.config.get("models"):
        env |= _model_cache(bundle, own, extra)
    for folder in (own / "home", own / "cache", hugging_face / "hub"):
        folder.mkdir(parents=True, exist_ok=True)
    return env | dict(extra)


def _model_cache(bundle: Bundle, own: Path, extra: Mapping[str, str]) -> dict[str, str]:
    hub = bundle.path / "hub"
    if extra.get("HF_HUB_OFFLINE", "1").lower() in ("1", "true", "yes", "on"):
        return {
            "HF_HUB_CACHE": str(hub),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }
    # A cache that may grow: links to the bundle's models, downloads beside them.
    cache = own / "hub"
    cache.mkdir(parents=True, exist_ok=True)
    for folder in hub.iterdir():
        if not (cache / folder.name).is_symlink():
            (cache / folder.name).symlink_to(folder)
    return {"HF_HUB_CACHE": str(cache)}
