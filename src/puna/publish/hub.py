"""The Hugging Face Hub, or one that speaks its language (`HF_ENDPOINT`): push a version, pull a base.

Large files travel by xet whenever hf_xet is installed; the client asks no more whether the hub has it, and there is no
falling back. A self-hosted hub without xet takes the older LFS way when `HF_HUB_DISABLE_XET=1` is set, which is left to
the user: the client reads it once, at import, and other libraries of the same process follow it too.
"""

from __future__ import annotations

import errno
import io
import tempfile
import threading
from pathlib import Path
from typing import Any

from puna.artifacts import MANIFEST, Model
from puna.errors import MachineError, NotFoundError, PublishError
from puna.home import Home
from puna.progress import Progress, Silent
from puna.publish.card import model_card
from puna.publish.hub_look import explain
from puna.publish.registry import RegisteredVersion

# What a base is made of. Never a pickle, never code, no second copy in another framework's format.
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")
UNWANTED = ("original/*", "onnx/*", "consolidated*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.py")


def push(
    version: RegisteredVersion,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    progress: Progress | None = None,
) -> str:
    """Upload one version with a model card, in one commit; returns the model's address on the hub.

    The repository is made when missing; weights of an earlier version that this one lacks are deleted from it.

    Raises:
        NotFoundError: the version's folder is gone.
        PublishError: the hub refuses, lacks what is needed, or cannot be reached; with what to do about it.
    """
    from huggingface_hub import HfApi  # a second to import

    watch = progress or Silent()
    if version.kind != Model.kind:
        raise PublishError(
            f"{version.ref} is an adapter, and only whole models are pushed",
            f"puna merge RUN, puna publish RUN owner/name --hub {repo_id}",
        )
    watch.stage(f"push {version.ref} to {repo_id}")
    card = model_card(version, repo_id)
    api = HfApi(token=token)
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
    watch.note(f"pushed to {address}")
    return str(address)


def pull(repo_id: str, revision: str | None, home: Home, progress: Progress | None = None) -> Path:
    """A hub model's weights, config and tokenizer as a local folder, in the cache that all Hugging Face tools share.

    What the cache holds already is not fetched again, and needs no network when it is whole. `home` is not written to.

    Raises:
        NotFoundError: there is no such model or revision, it is gated, or it is not cached and the hub is out of reach.
        MachineError: the disk is full.
    """
    from huggingface_hub import snapshot_download  # a second to import
    from huggingface_hub.constants import ENDPOINT

    watch = progress or Silent()
    watch.stage(f"fetch {repo_id}")
    try:
        path = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_watching(watch),
        )
    except Exception as error:  # the CLI's user sees it as a NotFoundError; hf_xet raises no class of its own to name
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise MachineError(
                "no space left for the base", "free some space, or set HF_HOME to a larger disk"
            ) from error
        named = repo_id + (f" at {revision}" if revision else "")
        raise explain(error, f"the base {named} was not fetched", ENDPOINT, NotFoundError) from error
    return Path(path)


def _stage(model: Path, staging: Path, card: str) -> None:
    """Links to the model's files, and the card. The manifest stays at home: it names local paths."""
    for path in model.iterdir():
        if path.name not in (MANIFEST, "README.md") and path.is_file():
            (staging / path.name).symlink_to(path.absolute())
    (staging / "README.md").write_text(card, encoding="utf-8")


def _watching(watch: Progress) -> type:
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
                    watch.advance(int(self.n), int(self.total or self.n))
                return moved

    return Watching
