"""The Hugging Face Hub, or one that speaks its language (`HF_ENDPOINT`): push a version, pull a base.

Large files travel by xet whenever hf_xet is installed; the client asks no more whether the hub has it, and there is no
falling back. A self-hosted hub without xet takes the older LFS way when `HF_HUB_DISABLE_XET=1` is set, which is left to
the user: the client reads it once, at import, and other libraries of the same process follow it too.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from puna.artifacts import MANIFEST, Model
from puna.errors import MachineError, NotFoundError, PublishError, PunaError, first_line
from puna.home import Home
from puna.progress import Progress, Silent
from puna.publish.card import model_card
from puna.publish.registry import RegisteredVersion

LOOK_S = 20.0
TOKEN_HINT = "set HF_TOKEN to a token with write access, made at https://huggingface.co/settings/tokens"
XET_HINT = "set HF_HUB_DISABLE_XET=1: this hub has no xet storage, and the client tries nothing else by itself"


def look(repo_id: str, token: str = "") -> str:
    """The newest commit of a hub model that an app with this token, or none, can fetch; nothing is fetched.

    Raises:
        NotFoundError: there is no such model, it is gated, it has no safetensors, or the hub cannot be asked.
    """
    try:
        from huggingface_hub import HfApi  # a second to import
    except ImportError:
        raise NotFoundError(
            f"{repo_id} was not looked for on the hub: huggingface-hub is not installed", "pip install huggingface-hub"
        ) from None
    # Named here, as the app will find it in its environment; without a token the machine's own user's is not taken.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False)
    try:
        found = api.model_info(repo_id, timeout=LOOK_S)
        if found.gated:
            api.auth_check(repo_id)
    except Exception as error:  # whoever asked sees it as a NotFoundError; the client's HTTP library has changed twice
        raise explain(error, f"{repo_id} was not found", api.endpoint, NotFoundError) from error
    files = {file.rfilename for file in found.siblings or ()}
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise NotFoundError(
            f"{repo_id} on the hub has no config.json with safetensors weights",
            "name a model that has them; pickled ones may run code when read",
        )
    return str(found.sha)


def explain(error: Exception, what: str, endpoint: str, kind: type[PunaError]) -> PunaError:
    """The same failure with its reason in one sentence and the next thing to do."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or _xet_status(error)
    if isinstance(error, errors.GatedRepoError):
        return kind(
            f"{what}: it is gated",
            f"accept its licence at {_page(endpoint, response)} and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return kind(f"{what}: there is no such revision", "check the revision: a branch, a tag or a commit")
    if status == 404 and "/xet-write-token/" in f"{getattr(response, 'url', '')} {error}":
        return kind(f"{what}: {endpoint} takes no xet uploads", XET_HINT)
    if status in STATUSES:
        reason, hint = STATUSES[status]
        return kind(f"{what}: {endpoint} {reason}", hint)
    if isinstance(error, errors.HFValidationError):
        return kind(f"{what}: {first_line(error)[:300]}", "write owner/name")
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(error)):
        lacking = " and the cache lacks it" if kind is NotFoundError else ""
        return kind(f"{what}: HF_HUB_OFFLINE is set{lacking}", "unset HF_HUB_OFFLINE and try again")
    if status is None and _unreachable(error):
        hint = "check the network, the proxy and HF_ENDPOINT, then try again"
        return kind(f"{what}: {endpoint} cannot be reached", hint)
    hint = "try again; if it stays so, look at the hub's status page"
    return kind(f"{what}: {first_line(error)[:300]}", hint, detail=str(error))


def _page(endpoint: str, response: object) -> str:
    """The page of the model that was asked for, whichever of its addresses that was."""
    asked = str(getattr(response, "url", ""))
    found = re.match(r"(?:/api/models)?(/[^/?]+/[^/?]+)", asked.removeprefix(endpoint))
    return endpoint + (found[1] if found else "")


STATUSES: dict[int | None, tuple[str, str]] = {
    401: ("does not know the token, or there is no such model", TOKEN_HINT),
    403: ("does not let this token do that", TOKEN_HINT + "; the owner must be you or your organisation"),
    404: ("has no such model", "check the name; for a private model set HF_TOKEN"),
    413: ("finds a file too large", "ask the hub's owner to raise its limit"),
    429: ("asks to slow down", "wait a minute and try again"),
    507: ("has no room left", "ask the hub's owner for more room"),
}


def _xet_status(error: Exception) -> int | None:
    # hf_xet is compiled; it puts the hub's answer into the text of a plain ConnectionError.
    found = re.search(r"HTTP status (?:client|server) error \((\d{3})", str(error))
    return int(found[1]) if found else None


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _unreachable(error: Exception) -> bool:
    # The client's HTTP library has changed its name twice; its transport errors have kept theirs.
    names = {base.__name__ for cause in _causes(error) for base in type(cause).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "ConnectError", "TimeoutException"})


# What a base is made of. Never a pickle, never code, no second copy in another framework's format.
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")
UNWANTED = ("original/*", "onnx/*", "consolidated*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.py")


def push(version: RegisteredVersion, repo_id: str, *, private: bool = False, progress: Progress = Silent()) -> str:
    """Upload one version with a model card, in one commit; returns the model's address on the hub.

    The repository is made when missing; weights of an earlier version that this one lacks are deleted from it.

    Raises:
        NotFoundError: the version's folder is gone.
        PublishError: the hub refuses, lacks what is needed, or cannot be reached; with what to do about it.
    """
    from huggingface_hub import HfApi  # a second to import

    if version.kind != Model.kind:
        raise PublishError(
            f"{version.ref} is an adapter, and only whole models are pushed",
            f"puna merge RUN, puna publish RUN owner/name --hub {repo_id}",
        )
    progress.stage(f"push {version.ref} to {repo_id}")
    card = model_card(version, repo_id)
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private or None, exist_ok=True, repo_type="model")
        with tempfile.TemporaryDirectory() as staging:
            _stage(version.path, Path(staging), card)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=staging,
                commit_message=f"{version.ref} ({version.digest[:12]})",
                delete_patterns=["*.safetensors", "*.safetensors.index.json"],
            )
    except Exception as error:  # the CLI's user sees it as a PublishError; hf_xet raises no class of its own to name
        raise explain(error, f"{version.ref} was not pushed to {repo_id}", api.endpoint, PublishError) from error
    progress.note(f"pushed to {address}")
    return str(address)


def pull(repo_id: str, revision: str | None, home: Home, progress: Progress = Silent()) -> Path:
    """A hub model's weights, config and tokenizer as a local folder, in the cache that all Hugging Face tools share.

    What the cache holds already is not fetched again, and needs no network when it is whole. `home` is not written to.

    Raises:
        NotFoundError: there is no such model or revision, it is gated, or it is not cached and the hub is out of reach.
        MachineError: the disk is full.
    """
    from huggingface_hub import snapshot_download  # a second to import
    from huggingface_hub.constants import ENDPOINT

    progress.stage(f"fetch {repo_id}")
    try:
        path = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_watching(progress),
        )
    except Exception as error:  # the CLI's user sees it as a NotFoundError; hf_xet raises no class of its own to name
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            hint = "free some space, or set HF_HOME to a larger disk"
            raise MachineError("no space left for the base", hint) from error
        named = repo_id + (f" at {revision}" if revision else "")
        raise explain(error, f"the base {named} was not fetched", ENDPOINT, NotFoundError) from error
    return Path(path)


def _stage(model: Path, staging: Path, card: str) -> None:
    """Links to the model's files, and the card. The manifest stays at home: it names local paths."""
    for path in model.iterdir():
        if path.name not in (MANIFEST, "README.md") and path.is_file():
            (staging / path.name).symlink_to(path.absolute())
    (staging / "README.md").write_text(card, encoding="utf-8")


def _watching(progress: Progress) -> type:
    """huggingface_hub draws its own bars through this class; ours tell the watcher instead and draw nothing."""
    from huggingface_hub.utils import tqdm

    lock = threading.Lock()  # files are fetched by several threads, and a watcher expects one caller

    class Watching(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            # By itself it counts nothing where no terminal is.
            super().__init__(*args, **(options | {"disable": False, "file": io.StringIO()}))

        def display(self, *args: Any, **options: Any) -> None:
            """Nothing is drawn."""

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                moved: bool | None = super().update(n)
                # One bar counts files; of those that count bytes, this one ends when all are on the disk.
                if getattr(self, "unit", "") == "B" and "econstruct" in (self.desc or ""):
                    progress.advance(int(self.n), int(self.total or self.n))
                return moved

    return Watching
