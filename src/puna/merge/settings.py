"""The files beside the weights: config, tokenizer, licence, with one answer to where a reply ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from puna.artifacts import SHORT, Adapter, Dataset, write_json
from puna.errors import MergeError, NotFoundError
from puna.home import Home

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# Licences travel with the weights; the base's own model card does not: it describes another model.
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def read_config(base_dir: Path) -> dict[str, Any]:
    """The base's config.json.

    Raises:
        MergeError: it is missing, damaged, or says that the weights are already quantised.
    """
    try:
        config: dict[str, Any] = json.loads((base_dir / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise MergeError(f"{base_dir / CONFIG} cannot be read: {error}") from None
    if config.get("quantization_config"):
        raise MergeError(f"the base {base_dir} is quantised already", "use the base in bf16, fp16 or fp32")
    return config


def write_settings(base_dir: Path, adapter: Adapter, home: Home, target: Path, *, untied: bool) -> None:
    """Write everything but the weights into `target`.

    Raises:
        MergeError: the adapter's tokenizer is missing or contradicts the data it was trained on.
    """
    tokenizer = adapter.path / "tokenizer"
    if not (tokenizer / "tokenizer_config.json").is_file():
        raise MergeError(f"the adapter {adapter.path} holds no tokenizer")
    special = _token_ids(tokenizer, _trained_on(adapter, home), _read_generation(base_dir))
    config = read_config(base_dir) | special
    if untied:
        config["tie_word_embeddings"] = False
    write_json(target / CONFIG, config)
    known = {key: value for key, value in special.items() if value is not None}
    write_json(target / GENERATION_CONFIG, _read_generation(base_dir) | known)
    for path in sorted(tokenizer.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    for path in sorted(p for pattern in LICENCES for p in base_dir.glob(pattern) if p.is_file()):
        shutil.copyfile(path, target / path.name)


def _token_ids(tokenizer: Path, learnt: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """The ids that begin, pad and end a reply, by the tokenizer's files, with the stop tokens that the data taught.

    `learnt` is the dataset's metrics, or empty when the dataset is gone: then the tokenizer's eos and the base's own
    stop tokens are all there is.
    """
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    vocabulary = _vocabulary(tokenizer / "tokenizer.json")
    bos, eos, pad = (_id(settings.get(f"{role}_token"), vocabulary) for role in ("bos", "eos", "pad"))
    if eos is None:
        raise MergeError(f"{tokenizer} names no eos_token: the model would never stop", "prepare the dataset again")
    if learnt.get("eos_token_id") not in (None, eos):
        raise MergeError(f"the tokenizer ends a reply with {eos}, the training data with {learnt['eos_token_id']}")
    stop = learnt.get("stop_token_ids")
    if stop is None:
        stop = generation.get("eos_token_id") or []
        stop = stop if isinstance(stop, list) else [stop]
    ends = list(dict.fromkeys([eos, *stop]))
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else eos, "pad_token_id": pad}


def _trained_on(adapter: Adapter, home: Home) -> dict[str, Any]:
    digest = adapter.manifest.made_from.get("dataset")
    if not digest:
        return {}
    try:
        return dict(Dataset.open(home.datasets / digest[:SHORT]).manifest.metrics)
    except NotFoundError:
        return {}


def _read_generation(base_dir: Path) -> dict[str, Any]:
    path = base_dir / GENERATION_CONFIG
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        value = json.loads(path.read_text())
        return dict(value["model"]["vocab"]) | {t["content"]: t["id"] for t in value.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MergeError(f"{path} cannot be read: {error!r}") from None


def _id(token: str | dict[str, Any] | None, vocabulary: dict[str, int]) -> int | None:
    text = token["content"] if isinstance(token, dict) else token
    if text is not None and text not in vocabulary:
        raise MergeError(f"the tokenizer's {text!r} is not in its vocabulary")
    return None if text is None else vocabulary[text]
