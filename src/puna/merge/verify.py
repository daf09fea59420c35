"""Is the merged model the trained one? Measured on held-out data, through code that training never ran."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from puna.artifacts import MANIFEST, Manifest, Model, write_json
from puna.merge.probes import Probes, TrainedLike
from puna.merge.served import Served
from puna.progress import Progress

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
    """What was measured, and what follows from it."""

    base: str
    """`original` or `dequantised`."""
    exact: bool
    """Whether the merged model must equal the trained one, or only be as good."""
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
    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass."""

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
    tokens = sum(gap.tokens for gap in gaps)
    replies = [served.reply(prompt.ids, probes.reply_tokens) for prompt in probes.prompts]
    same = sum(_words(a, probes) == _words(b, probes) for a, b in zip(replies, expected.replies, strict=True))
    token_reasons = _token_reasons(served, probes)
    found = Verification(
        base=base,
        exact=base == "dequantised" or not model.manifest.config.get("trained_in_4bit", True),
        merged_loss=served.loss(probes.rows),
        trained_loss=expected.loss,
        logits_max_diff=max(gap.largest for gap in gaps),
        logits_mean_diff=sum(gap.total for gap in gaps) / sum(gap.numbers for gap in gaps),
        logits_share=math.sqrt(sum(gap.squares for gap in gaps) / max(sum(gap.spread for gap in gaps), 1e-30)),
        mean_kl=sum(gap.kl for gap in gaps) / tokens,
        same_top=sum(gap.same_top for gap in gaps) / tokens,
        replies_equal=f"{same} of {len(replies)}",
        token_ids_equal=not token_reasons,
        passed=False,
        reasons=(),
    )
    reasons = (*judge(found), *token_reasons, *_stop_reasons(served, probes))
    verdict = dataclasses.replace(found, passed=not reasons, reasons=reasons)
    _record(model, verdict)
    return verdict


def judge(found: Verification) -> list[str]:
    """Why these figures do not pass; empty when they do. NaN never passes."""
    rise = found.merged_loss - found.trained_loss
    if not found.exact:
        text = (
            f"held-out loss rose from {found.trained_loss:.4f} to {found.merged_loss:.4f}, allowed is {MAX_LOSS_RISE}"
        )
        return [] if rise <= MAX_LOSS_RISE else [text]
    checks = (
        (
            abs(rise),
            MAX_LOSS_GAP,
            f"held-out loss is {found.merged_loss:.4f}, the trained model's {found.trained_loss:.4f}",
        ),
        (found.mean_kl, MAX_KL, f"the next-token distributions differ by {found.mean_kl:.4f} nats of KL"),
        (found.logits_share, MAX_LOGITS_SHARE, f"the logits differ by {found.logits_share:.1%} of their spread"),
    )
    return [f"{text}, allowed is {limit}" for value, limit, text in checks if not value <= limit]


@dataclass(frozen=True)
class _Gap:
    tokens: int
    numbers: int
    largest: float
    total: float
    squares: float
    spread: float
    kl: float
    same_top: int


def _gap(want_TV: torch.Tensor, got_TV: torch.Tensor) -> _Gap:
    # A constant added to a position's logits changes nothing that a sampler sees: compare about the mean.
    want_TV = want_TV - want_TV.mean(-1, keepdim=True)
    got_TV = got_TV - got_TV.mean(-1, keepdim=True)
    diff_TV = (got_TV - want_TV).abs()
    log_p, log_q = want_TV.log_softmax(-1), got_TV.log_softmax(-1)
    return _Gap(
        tokens=len(want_TV),
        numbers=diff_TV.numel(),
        largest=float(diff_TV.max()),
        total=float(diff_TV.sum(dtype=torch.float64)),
        squares=float(diff_TV.square().sum(dtype=torch.float64)),
        spread=float(want_TV.square().sum(dtype=torch.float64)),
        kl=float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)),
        same_top=int((want_TV.argmax(-1) == got_TV.argmax(-1)).sum()),
    )


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
    manifest = Manifest(**{**known.__dict__, "metrics": {**known.metrics, "verification": verdict.as_dict()}})
    write_json(model.path / MANIFEST, manifest.__dict__)
