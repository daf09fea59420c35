"""The merged model as a server would load it: transformers and the folder, nothing of the trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from puna.merge.layout import shards
from puna.merge.probes import Prompt, Row
from puna.merge.settings import GENERATION_CONFIG

# Positions through the head at a time: 1 GB of fp32 logits at 128 k words; a row seldom has more that are learnt.
LOSS_POSITIONS = 2048


class Served:
    """A model folder behind `AutoModelForCausalLM` and `AutoTokenizer`, no code or network of its own."""

    def __init__(self, path: Path) -> None:
        """Load it: fp32 on CPU; in its own dtype where a GPU has room, or where fp32 would not fit the memory."""
        # Seconds to import, and only this class needs it.
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        self.device, dtype = _placement(sum(shard.size_bytes for shard in shards(path)))
        options = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **options)
        logging.disable_progress_bar()  # the stage's own progress is what the user watches
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
        self.model: Any = model.to(self.device).eval()
        generation = json.loads((path / GENERATION_CONFIG).read_text())
        eos = generation.get("eos_token_id")
        self.stop_token_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        eos = json.loads((path / "config.json").read_text()).get("eos_token_id")
        self.config_stop_token_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)

    @torch.no_grad()
    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """fp32 [T, V], on the CPU."""
        ids_BT = torch.tensor([list(input_ids)], device=self.device)
        return self.model(input_ids=ids_BT, use_cache=False).logits[0].float().cpu()  # type: ignore[no-any-return]

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        """Mean over the labelled tokens of all rows, in nats."""
        total, count = 0.0, 0
        for input_ids, labels in rows:
            ids_BT = torch.tensor(input_ids, dtype=torch.long, device=self.device)[None]
            labels_T = torch.tensor(labels, dtype=torch.long, device=self.device)
            # Only the positions that are learnt go through the head: 128 k logits each.
            at = (labels_T[1:] != -100).nonzero().flatten()
            for part in torch.split(at, LOSS_POSITIONS):
                logits_NV = self.model(input_ids=ids_BT, use_cache=False, logits_to_keep=part).logits[0]
                total += float(
                    torch.nn.functional.cross_entropy(logits_NV.float(), labels_T[part + 1], reduction="sum")
                )
            count += len(at)
        return total / max(count, 1)

    @torch.no_grad()
    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy, ending where the folder's own generation config says."""
        ids_BT = torch.tensor([list(prompt_ids)], device=self.device)
        made = self.model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.stop_token_ids[0] if self.stop_token_ids else 0,
        )
        return [int(i) for i in made[0, ids_BT.shape[1] :]]

    def prompt_paths(self, prompt: Prompt) -> dict[str, list[int]]:
        """The prompt's ids by each way that a server takes from messages to ids."""
        rendered = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        template = self.tokenizer.apply_chat_template(
            prompt.messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        # An app that hands the rendered text to an engine (the tutorial's does) gets the tokenizer's own special
        # tokens on top: a template that writes BOS then has two.
        return {"apply_chat_template": list(template), "render, then encode": list(self.tokenizer(rendered).input_ids)}


def _placement(size_bytes: int) -> tuple[torch.device, torch.dtype | str]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # A tenth over the weights for activations; the trained model may hold the rest of the GPU.
        if torch.cuda.mem_get_info()[0] > size_bytes * 1.1:
            return torch.device("cuda"), "auto"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return torch.device("cpu"), torch.float32 if size_bytes * 2.2 < memory_bytes else "auto"
