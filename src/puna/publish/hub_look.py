"""Whether a model can be had from the Hugging Face Hub, and in plain words why not."""

from __future__ import annotations

import os
import re

from puna.errors import NotFoundError, PunaError

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
        return kind(f"{what}: {_first(error)}", "write owner/name")
    if _offline(error):
        lacking = " and the cache lacks it" if kind is NotFoundError else ""
        return kind(f"{what}: HF_HUB_OFFLINE is set{lacking}", "unset HF_HUB_OFFLINE and try again")
    if status is None and _unreachable(error):
        return kind(
            f"{what}: {endpoint} cannot be reached", "check the network, the proxy and HF_ENDPOINT, then try again"
        )
    return kind(
        f"{what}: {_first(error)}", "try again; if it stays so, look at the hub's status page", detail=str(error)
    )


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


def _offline(error: Exception) -> bool:
    from huggingface_hub import errors

    return any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(error))


def _unreachable(error: Exception) -> bool:
    # The client's HTTP library has changed its name twice; its transport errors have kept theirs.
    names = {base.__name__ for cause in _causes(error) for base in type(cause).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "ConnectError", "TimeoutException"})


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
