"""Is the merged model the trained one? Measured on held-out data, through code that training never ran."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional as F

from puna.artifacts import MANIFEST, Dataset, Model, write_json
from puna.errors import MergeError
from puna.merge.layout import shards
from puna.merge.settings import CONFIG, GENERATION_CONFIG
from puna.progress import Progress
from puna.tokens import NOT_LEARNT, TokenRows, Tokens

# 65 k tokens fix a mean loss to about 0.005 nats (a token's loss spreads over some 1.3), and take under a minute on
# a GPU; on a CPU only small models are trained.
LOSS_TOKENS = 65_536
# Whole logits are wide: 128 k of them a token in fp32 is half a MB, so few positions are kept.
LOGIT_ROWS, LOGIT_TOKENS = 8, 256
REPLY_TOKENS = 64
# Positions through the head at a time: 1 GB of fp32 logits at 128 k words; a row seldom has more that are learnt.
LOSS_POSITIONS = 2048


class TrainedLike(Protocol):
    """The model as training left it: a frozen base, perhaps in 4 bits, with the adapter beside it."""

    def loss(self, rows: Sequence[Tokens]) -> float:
        """Mean over the labelled tokens of all rows, in nats."""

    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """fp32 [T, V]."""

    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]) -> list[int]:
        """Greedy."""


@dataclass(frozen=True)
class Prompt:
    """A held-out conversation up to the user's last turn."""

    messages: list[dict[str, Any]]
    ids: list[int]
    """As the trainer tokenised it, generation prompt included."""


@dataclass(frozen=True)
class Probes:
    """Rows and prompts to compare on."""

    rows: list[Tokens]
    """Held out unless `held_out` is False."""
    prompts: list[Prompt]
    stop_token_ids: tuple[int, ...]
    held_out: bool
    reply_tokens: int = REPLY_TOKENS

    @property
    def texts(self) -> list[list[int]]:
        """The token ids whose logits are compared."""
        rows = [row[0] for row in self.rows[:LOGIT_ROWS]]
        return [[int(i) for i in ids[:LOGIT_TOKENS]] for ids in rows]


def read_probes(dataset: Dataset) -> Probes:
    """Held-out rows and prompts; training rows when nothing was held out.

    Raises:
        MergeError: the dataset has no row with anything to learn.
    """
    rows, held_out = _rows(dataset, "test"), True
    if not rows:
        rows, held_out = _rows(dataset, "train"), False
    if not rows:
        raise MergeError(f"the dataset {dataset.path} has no row to compare on")
    samples = json.loads((dataset.path / "samples.json").read_text())
    prompts = [Prompt(sample["messages"], [int(i) for i in sample["prompt_ids"]]) for sample in samples]
    metrics = dataset.manifest.metrics
    stop = dict.fromkeys(int(i) for i in (metrics["eos_token_id"], *metrics.get("stop_token_ids", [])))
    return Probes(rows, prompts, tuple(stop), held_out)


def _rows(dataset: Dataset, split: Literal["train", "test"]) -> list[Tokens]:
    every = TokenRows.load(dataset, split)
    rows: list[Tokens] = []
    budget = LOSS_TOKENS
    for ids, labels in (every[i] for i in range(len(every))):
        # The first token has nothing before it to be predicted from.
        if bool((labels[1:] != NOT_LEARNT).any()):
            rows.append((ids, labels))
            budget -= len(ids)
        if budget <= 0:
            break
    return rows


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
        self.stop_token_ids = _eos_ids(path / GENERATION_CONFIG)
        self.config_stop_token_ids = _eos_ids(path / CONFIG)

    @torch.no_grad()
    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """fp32 [T, V], on the CPU."""
        ids_BT = torch.tensor([list(input_ids)], device=self.device)
        return self.model(input_ids=ids_BT, use_cache=False).logits[0].float().cpu()  # type: ignore[no-any-return]

    @torch.no_grad()
    def loss(self, rows: Sequence[Tokens]) -> float:
        """Mean over the labelled tokens of all rows, in nats."""
        total, count = 0.0, 0
        for input_ids, labels in rows:
            ids_BT = torch.tensor(input_ids, dtype=torch.long, device=self.device)[None]
            labels_T = torch.tensor(labels, dtype=torch.long, device=self.device)
            # Only the positions that are learnt go through the head: 128 k logits each.
            at = (labels_T[1:] != NOT_LEARNT).nonzero().flatten()
            for part in torch.split(at, LOSS_POSITIONS):
                logits_NV = self.model(input_ids=ids_BT, use_cache=False, logits_to_keep=part).logits[0]
                total += float(F.cross_entropy(logits_NV.float(), labels_T[part + 1], reduction="sum"))
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


def _eos_ids(path: Path) -> tuple[int, ...]:
    eos = json.loads(path.read_text()).get("eos_token_id")
    return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)


def _placement(size_bytes: int) -> tuple[torch.device, torch.dtype | str]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # A tenth over the weights for activations; the trained model may hold the rest of the GPU.
        if torch.cuda.mem_get_info()[0] > size_bytes * 1.1:
            return torch.device("cuda"), "auto"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return torch.device("cpu"), torch.float32 if size_bytes * 2.2 < memory_bytes else "auto"


# A merge onto the weights that training saw differs by rounding only. Both models in bf16 differ from themselves in
# fp32 by about 1e-4 to 1e-3 nats of KL and 1 to 2 % of the logits' spread; the NF4 error, which is what a merge onto
# the wrong base shows, moves an 8 B model by 0.03 nats and more, and a tensor left out by more than that.
MAX_KL = 0.01
MAX_LOGITS_SHARE = 0.05
# Half a per cent of a perplexity is what rounding may cost.
MAX_LOSS_GAP = 0.005
# The original base is another model on purpose, so only its held-out loss counts: at most 1 % worse in perplexity,
# which is within what a thousand held-out tokens could tell apart from no difference.
MAX_LOSS_RISE = 0.01


@dataclass(frozen=True)
class Verification:
    """The figures measured, and the verdict."""

    base: str
    """`original` or `dequantised`."""
    exact: bool
    """True: the merged model must equal the trained one; false: be as good."""
    merged_loss: float
    trained_loss: float
    """Held-out, nats a token."""
    logits_max_diff: float
    logits_mean_diff: float
    logits_share: float
    """Root mean square difference over the logits' own spread."""
    mean_kl: float
    """KL(trained || merged), nats a token."""
    same_top: float
    """Share of positions with the same likeliest token."""
    replies_equal: str
    """Greedy replies, `n of m`: told, not judged, since one near-tie turns a reply."""
    token_ids_equal: bool
    passed: bool = False
    reasons: tuple[str, ...] = ()
    """Reasons why it did not pass."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Expected:
    """The trained model's side of the comparison, measured once for any number of merges."""

    loss: float
    logits: tuple[torch.Tensor, ...]
    """fp32 [T, V] each, on the CPU."""
    replies: tuple[list[int], ...]


def expect(trained: TrainedLike, probes: Probes, watch: Progress) -> Expected:
    """Measure the trained model."""
    watch.stage("measure the trained model")
    if not probes.held_out:
        watch.note("no rows were held out (data.test_fraction is 0): compared on training rows")
    replies = (trained.reply(p.ids, probes.reply_tokens, probes.stop_token_ids) for p in probes.prompts)
    logits = tuple(trained.logits(ids).float().cpu() for ids in probes.texts)
    return Expected(trained.loss(probes.rows), logits, tuple(list(reply) for reply in replies))


def compare(model: Model, expected: Expected, probes: Probes, watch: Progress) -> Verification:
    """Measure the merged model against what is expected of it, and record the verdict in its manifest."""
    base = str(model.manifest.config.get("base", "original"))
    watch.stage(f"verify the merge with the {base} base")
    served = Served(model.path)
    gaps = [_gap(want, served.logits(ids)) for want, ids in zip(expected.logits, probes.texts, strict=True)]
    sums = {key: sum(gap[key] for gap in gaps) for key in gaps[0]}
    replies = [served.reply(prompt.ids, probes.reply_tokens) for prompt in probes.prompts]
    same = sum(_words(a, probes) == _words(b, probes) for a, b in zip(replies, expected.replies, strict=True))
    token_reasons = _token_reasons(served, probes)
    found = Verification(
        base=base,
        exact=base == "dequantised" or not model.manifest.config.get("trained_in_4bit", True),
        merged_loss=served.loss(probes.rows),
        trained_loss=expected.loss,
        logits_max_diff=max(gap["largest"] for gap in gaps),
        logits_mean_diff=sums["total"] / sums["numbers"],
        logits_share=math.sqrt(sums["squares"] / max(sums["spread"], 1e-30)),
        mean_kl=sums["kl"] / sums["tokens"],
        same_top=sums["same_top"] / sums["tokens"],
        replies_equal=f"{same} of {len(replies)}",
        token_ids_equal=not token_reasons,
    )
    reasons = (*judge(found), *token_reasons, *_stop_reasons(served, probes))
    verdict = dataclasses.replace(found, passed=not reasons, reasons=reasons)
    _record(model, verdict)
    return verdict


def judge(found: Verification) -> list[str]:
    """Reasons why these figures do not pass; empty when they do. NaN never passes."""
    rise = found.merged_loss - found.trained_loss
    if not found.exact:
        text = f"held-out loss rose from {found.trained_loss:.4f} to {found.merged_loss:.4f}"
        return [] if rise <= MAX_LOSS_RISE else [f"{text}, allowed is {MAX_LOSS_RISE}"]
    losses = f"held-out loss is {found.merged_loss:.4f}, the trained model's {found.trained_loss:.4f}"
    checks = (
        (abs(rise), MAX_LOSS_GAP, losses),
        (found.mean_kl, MAX_KL, f"the next-token distributions differ by {found.mean_kl:.4f} nats of KL"),
        (found.logits_share, MAX_LOGITS_SHARE, f"the logits differ by {found.logits_share:.1%} of their spread"),
    )
    return [f"{text}, allowed is {limit}" for value, limit, text in checks if not value <= limit]


def _gap(want_TV: torch.Tensor, got_TV: torch.Tensor) -> dict[str, float]:
    """Sums over one text, to be added up with those of others, and its largest difference."""
    # A constant added to a position's logits changes nothing that a sampler sees: compare about the mean.
    want_TV = want_TV - want_TV.mean(-1, keepdim=True)
    got_TV = got_TV - got_TV.mean(-1, keepdim=True)
    diff_TV = (got_TV - want_TV).abs()
    log_p, log_q = want_TV.log_softmax(-1), got_TV.log_softmax(-1)
    return {
        "tokens": len(want_TV),
        "numbers": diff_TV.numel(),
        "largest": float(diff_TV.max()),
        "total": float(diff_TV.sum(dtype=torch.float64)),
        "squares": float(diff_TV.square().sum(dtype=torch.float64)),
        "spread": float(want_TV.square().sum(dtype=torch.float64)),
        "kl": float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)),
        "same_top": int((want_TV.argmax(-1) == got_TV.argmax(-1)).sum()),
    }


def _words(reply: list[int], probes: Probes) -> list[int]:
    """The reply without the token that ended it: whether that is returned is each implementation's custom."""
    end = next((i for i, token in enumerate(reply) if token in probes.stop_token_ids), len(reply))
    return reply[:end]


def _token_reasons(served: Served, probes: Probes) -> list[str]:
    reasons = []
    for number, prompt in enumerate(probes.prompts):
        for path, ids in served.prompt_paths(prompt).items():
            if ids == prompt.ids:
                continue
            pairs = zip(ids, prompt.ids, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(prompt.ids)))
            reasons.append(
                f"prompt {number}: `{path}` gives {len(ids)} tokens, training saw {len(prompt.ids)}; "
                f"from token {at} {ids[at : at + 3]} instead of {prompt.ids[at : at + 3]}"
            )
    return reasons[:3]


def _stop_reasons(served: Served, probes: Probes) -> list[str]:
    reasons = []
    wanted = set(probes.stop_token_ids)
    for file, ids in (("generation_config", served.stop_token_ids), ("config", served.config_stop_token_ids)):
        if not wanted <= set(ids):
            reasons.append(f"{file}.json ends replies at {sorted(ids)}, training taught {sorted(wanted)}")
    if served.tokenizer.eos_token_id not in wanted:
        reasons.append(f"the tokenizer's eos is {served.tokenizer.eos_token_id}, training taught {sorted(wanted)}")
    return reasons


def _record(model: Model, verdict: Verification) -> None:
    """Add the figures to the manifest: it is outside the digest, so the model stays the same."""
    known = Model.open(model.path).manifest
    metrics = {**known.metrics, "verification": verdict.as_dict()}
    write_json(model.path / MANIFEST, known.__dict__ | {"metrics": metrics})
