"""Stage 1 top to bottom: from a dataset's name to tokenised rows that training reads, once per input."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.artifacts import SHORT, Dataset, drafting, file_digest, write_json
from puna.config.recipe import DataRecipe, Recipe
from puna.data.conversation import BadRowError, Row
from puna.data.encode import Encoder, encode_rows, processes_for
from puna.data.load import RowSource, bad_row, open_source, read_rows
from puna.data.template import BUILT_IN, load_template
from puna.data.tokenizer import ChatTokenizer, base_digest, build_tokenizer
from puna.errors import DataError, NotFoundError
from puna.home import Home
from puna.progress import Progress, Silent
from puna.tokens import NOT_LEARNT, TokenRows, Tokens


def sample(total: int, take: int | None, seed: int) -> list[int]:
    """Indices of the rows to use: `Dataset.shuffle(seed=seed).select(range(take))` of the tutorial, row for row."""
    order = np.random.default_rng(seed).permutation(total)
    return [int(i) for i in order[:take]]


def split(total: int, test_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out rows: `Dataset.train_test_split(test_size=..., seed=seed)`, row for row.

    Raises:
        DataError: so few rows that none would be left to train on.
    """
    held_out = math.ceil(test_fraction * total)
    if held_out >= total:
        raise DataError(
            f"{total} row{'s' * (total != 1)} cannot be split into rows to train on and {held_out} to hold out",
            "add rows, or set `data.test_fraction: 0`",
        )
    if not held_out:
        return list(range(total)), []
    order = [int(i) for i in np.random.default_rng(seed).permutation(total)]
    return order[held_out:], order[:held_out]


SAMPLES = 8  # held-out conversations that training answers before and after


def prepare(recipe: Recipe, base_dir: Path, home: Home, progress: Progress = Silent()) -> Dataset:
    """The tokenised dataset of a recipe; when the same input was prepared before, that one.

    Raises:
        DataError: the dataset, a row of it, the template or the base's tokenizer is unfit.
    """
    data = recipe.data
    progress.stage("load")
    source = open_source(data)
    index = home.datasets / f"{_key(data, source, base_dir)[:SHORT]}.json"
    if dataset := _prepared(index):
        progress.note(f"dataset {dataset.path.name} is there already: nothing to do")
        return dataset

    # ------------------------------------------------------------------ rows
    plain_text = source.column == "text"
    chosen = sample(len(source.records), data.take, data.shuffle_seed)
    rows, skipped = read_rows(source, chosen, need_assistant=data.loss_on == "assistant", skip_bad=data.skip_bad_rows)
    train, test = split(len(rows), data.test_fraction, data.shuffle_seed)

    # ------------------------------------------------------------------ tokens
    tokenizer = build_tokenizer(base_dir, data.template, plain_text=plain_text)
    with drafting("dataset", home.datasets) as draft:
        tokenizer.write(draft.path / "tokenizer")
        encoder = Encoder(
            tokenizer_file=draft.path / "tokenizer" / "tokenizer.json",
            template=tokenizer.template,
            end_of_text=tokenizer.end_of_text,
            learn_all=data.loss_on == "all",
            max_length=data.max_length,
        )
        progress.stage("tokenise")
        tokens, counts = _tokenise(encoder, [rows[i] for i in train + test], data, progress)
        parts = tokens[: len(train)], tokens[len(train) :]
        train_rows, test_rows = (TokenRows.pack([t for t in part if t]) for part in parts)
        if not len(train_rows):
            hint = "raise `data.max_length`, or see its rows with a preview"
            raise DataError(f"{source.name}: no row is left to train on", hint)
        train_rows.save(draft.path / "train.safetensors")
        test_rows.save(draft.path / "test.safetensors")
        write_json(draft.path / "samples.json", _samples(encoder, [rows[i] for i in test], data.max_length))
        draft.made_from = {"base": recipe.base, "base_tokenizer": base_digest(base_dir), "data": source.fingerprint}
        draft.config = recipe.as_dict()["data"] | {"base": recipe.base}
        draft.metrics = _metrics(train_rows, test_rows, tokenizer) | {
            "skipped_rows": skipped + counts["refused"],
            "unlearnable_rows": counts["unlearnable"],
            "truncated_rows": counts["cut"],
            "truncated_share": counts["cut"] / len(rows),
        }
    write_json(index, {"dataset": draft.final.name})
    _tell(progress, draft.metrics, data)
    return Dataset.open(draft.final)


def _tokenise(
    encoder: Encoder, rows: Sequence[Row], data: DataRecipe, progress: Progress
) -> tuple[list[Tokens | None], Counter[str]]:
    """Each row's tokens, None where there is nothing to learn, and how many were cut, refused or unlearnable."""
    tokens: list[Tokens | None] = []
    counts: Counter[str] = Counter()
    with contextlib.closing(encode_rows(encoder, rows, processes_for(len(rows), data.processes))) as encoded:
        for row, result in zip(rows, encoded, strict=True):
            if result.tokens is None and not data.skip_bad_rows:
                raise bad_row(row.where, result.problem)
            # A row whose first reply begins after the cut would add nothing but work, and 0 / 0 to a mean.
            is_learnable = result.tokens is not None and bool((result.tokens[1] != NOT_LEARNT).any())
            tokens.append(result.tokens if is_learnable else None)
            counts["refused"] += result.tokens is None
            counts["unlearnable"] += result.tokens is not None and not is_learnable
            counts["cut"] += result.cut
            if len(tokens) % 100 == 0 or len(tokens) == len(rows):
                progress.advance(len(tokens), len(rows))
    return tokens, counts


def _samples(encoder: Encoder, rows: Sequence[Row], max_length: int) -> list[dict[str, Any]]:
    """Held-out conversations up to a user turn, with the reply that the data gives; plain texts have none."""
    samples: list[dict[str, Any]] = []
    for row in rows:
        # The last reply whose prompt leaves room for an answer; a long conversation is asked at an earlier turn.
        for turn in range(len(row.messages) - 1, 0, -1):
            if (row.messages[turn]["role"], row.messages[turn - 1]["role"]) != ("assistant", "user"):
                continue
            with contextlib.suppress(BadRowError):
                ids = encoder.prompt_ids(row.messages[:turn])
                if len(ids) < max_length:
                    reply = row.messages[turn]["content"]
                    samples.append({"messages": list(row.messages[:turn]), "reference": reply, "prompt_ids": ids})
                    break
        if len(samples) == SAMPLES:
            break
    return samples


def _metrics(train: TokenRows, test: TokenRows, tokenizer: ChatTokenizer) -> dict[str, Any]:
    lengths = np.concatenate([train.lengths, test.lengths])
    tokens = int(lengths.sum())
    learnt = sum(int((rows.labels != NOT_LEARNT).sum()) for rows in (train, test))
    p50, p90, p99 = (int(q) for q in np.percentile(lengths, (50, 90, 99), method="inverted_cdf"))
    return {
        "rows_train": len(train),
        "rows_test": len(test),
        "tokens_train": len(train.input_ids),
        "tokens_test": len(test.input_ids),
        "labelled_share": learnt / tokens,
        "lengths": {"p50": p50, "p90": p90, "p99": p99, "max": int(lengths.max())},
        "chat_token_ids": dict(tokenizer.chat_token_ids),
        "eos_token_id": tokenizer.eos_token_id,
        "stop_token_ids": list(tokenizer.stop_token_ids),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _tell(progress: Progress, metrics: Mapping[str, Any], data: DataRecipe) -> None:
    progress.note(
        f"{metrics['rows_train']} rows to train on and {metrics['rows_test']} held out, "
        f"{metrics['tokens_train'] + metrics['tokens_test']} tokens, {metrics['labelled_share']:.0%} of them learnt"
    )
    if metrics["truncated_rows"]:
        progress.note(f"{metrics['truncated_share']:.1%} of the rows are cut at {data.max_length} tokens")
    if metrics["unlearnable_rows"]:
        progress.note(f"{metrics['unlearnable_rows']} rows left out: their first reply begins after that")
    if metrics["skipped_rows"]:
        progress.note(f"{metrics['skipped_rows']} malformed rows skipped")


# ------------------------------------------------------------------------------- the same input, no work


def _key(data: DataRecipe, source: RowSource, base_dir: Path) -> str:
    """A digest of everything the result depends on: data, choices, base tokenizer, and the code that makes it."""
    template = load_template(data.template)
    choices = dataclasses.asdict(data)
    for name in ("dataset", "split", "revision", "processes"):  # in the fingerprint, or without effect
        del choices[name]
    choices["template"] = data.template if data.template in BUILT_IN else template.training
    folder = Path(__file__).parent
    paths = [*sorted(folder.rglob("*")), folder.parent / "tokens.py"]
    code = [file_digest(path) for path in paths if path.suffix in (".py", ".jinja")]
    whole = {"data": choices, "source": source.fingerprint, "base": base_digest(base_dir), "code": code}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _prepared(index: Path) -> Dataset | None:
    try:
        return Dataset.open(index.parent / json.loads(index.read_text())["dataset"])
    except (OSError, ValueError, KeyError, TypeError, NotFoundError):
        return None  # never prepared, or removed since
