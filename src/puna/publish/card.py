"""The model card: what the hub shows of a model, made from its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from puna.artifacts import Model
from puna.publish.registry import RegisteredVersion

# What the licence of the base asks a model made from it to be labelled; others are left for the owner to state.
LICENCES = {
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "meta-llama/Meta-Llama-3.1-": "llama3.1",
    "meta-llama/Llama-3.2-": "llama3.2",
    "meta-llama/Llama-3.3-": "llama3.3",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(version: RegisteredVersion, repo_id: str) -> str:
    """README.md for the hub: a YAML header, and what a reader asks first.

    Raises:
        NotFoundError: the model's folder is gone.
    """
    manifest = Model.open(version.path).manifest
    recipe: Mapping[str, Any] = manifest.config.get("recipe") or {}
    base = hub_id(version.lineage.get("base", ""))
    data = hub_id(str((recipe.get("data") or {}).get("dataset", "")))
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["puna", "text-generation", "lora"],
    }
    if base:
        header |= {"base_model": base, "base_model_relation": "finetune"}
    if data:
        header["datasets"] = [data]
    licence = next((key for prefix, key in LICENCES.items() if base and base.startswith(prefix)), None)
    if licence:
        header["license"] = licence
    named = f"[{base}](https://huggingface.co/{base})" if base else "a base of its owner's"
    sections = [
        f"# {repo_id.split('/')[-1]}",
        f"{named} fine-tuned with LoRA and merged by Puna, as {version.ref}.",
        "## How to use",
        _usage(repo_id),
        "## How it was made",
        _recipe(recipe, data),
        "## How it was checked",
        _figures(version.verification),
        "## Lineage",
        _table({"model": version.digest} | {role: _public(ref) for role, ref in sorted(version.lineage.items())}),
        "## Licence",
        "The weights are derived from the base and stand under its licence"
        + ("." if base else "; ask the owner which that is."),
    ]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n" + "\n\n".join(sections) + "\n"


def hub_id(ref: str) -> str | None:
    """`owner/name` of a hub ref (`hub:owner/name@commit` or plain); None for a path or anything else."""
    name = ref.removeprefix("hub:").partition("@")[0]
    return name if HUB_ID.fullmatch(name) else None


def _public(ref: str) -> str:
    # A local path would tell strangers about the owner's disk.
    return "local folder" if ref.startswith(("/", "./", "../", "~")) else ref


def _usage(repo_id: str) -> str:
    return (
        "```python\n"
        "from transformers import pipeline\n\n"
        f'chat = pipeline("text-generation", model="{repo_id}")\n'
        'print(chat([{"role": "user", "content": "What is AI?"}], max_new_tokens=128))\n'
        "```"
    )


def _recipe(recipe: Mapping[str, Any], data: str | None) -> str:
    lora, training, bits, rows = (recipe.get(key) or {} for key in ("lora", "training", "quantization", "data"))
    batch = (training.get("per_device_train_batch_size") or 1) * (training.get("gradient_accumulation_steps") or 1)
    return _table(
        {
            "data": data or "local or bundled data",
            "rows": rows.get("take"),
            "chat template": _public(str(rows.get("template"))),
            "loss on": rows.get("loss_on"),
            "LoRA": f"rank {lora.get('lora_r')}, alpha {lora.get('lora_alpha')}, dropout {lora.get('lora_dropout')}",
            "base held in": "4 bits (NF4)" if bits.get("load_in_4bit") else "full precision",
            "learning rate": training.get("learning_rate"),
            "epochs": training.get("num_train_epochs"),
            "rows a step": batch,
            "seed": training.get("seed"),
        }
    )


def _figures(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return "It was not."
    names = {
        "base": "merged with the base",
        "merged_loss": "held-out loss, merged (nats a token)",
        "trained_loss": "held-out loss, as trained",
        "mean_kl": "KL to the trained model (nats a token)",
        "same_top": "same likeliest token",
        "replies_equal": "equal greedy replies",
        "token_ids_equal": "equal token ids in training and serving",
        "passed": "passed",
    }
    return _table({text: verdict[key] for key, text in names.items() if key in verdict})


def _table(rows: Mapping[str, object]) -> str:
    body = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None)
    return f"| | |\n|---|---|\n{body}"


def _cell(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
