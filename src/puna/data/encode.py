"""Rows as token ids and labels, in this process or in several."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from puna.data.conversation import BadRowError, Message, Row
from puna.data.template import ChatTemplate
from puna.errors import DataError
from puna.tokens import NOT_LEARNT, Tokens

CHUNK = 64  # rows handed to a process at once: some 70,000 tokens, a tenth of a second
# A process takes 1.5 s to start (it imports the template renderer); below this many rows it is not worth it.
ROWS_WORTH_A_PROCESS = 1000
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Encoded:
    """One row, encoded; or why it could not be."""

    tokens: Tokens | None
    cut: bool = False
    """It was longer than the limit."""
    problem: str = ""


@dataclass(frozen=True)
class Encoder:
    """Encodes rows; small enough to send to another process."""

    tokenizer_file: Path
    template: ChatTemplate
    end_of_text: str
    """Appended to a plain text that has no end token of its own."""
    learn_all: bool
    max_length: int

    def encode(self, row: Row) -> Encoded:
        """The row's ids and labels, cut at `max_length`."""
        try:
            ids, labels = self._text(row.text) if row.text else self._chat(row.messages)
        except BadRowError as problem:
            return Encoded(None, problem=str(problem))
        cut = len(ids) > self.max_length
        return Encoded((ids[: self.max_length], labels[: self.max_length]), cut)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that the assistant is to continue.

        Raises:
            BadRowError: the template refuses the conversation.
        """
        text = self.template.render(messages, generation_prompt=True)
        return list(self.tokenizer.encode(text).ids)

    @cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the files that ship."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_file))

    def _chat(self, messages: Sequence[Message]) -> Tokens:
        if self.learn_all:
            ids = np.array(self.tokenizer.encode(self.template.render(messages)).ids, np.int32)
            return ids, ids.copy()
        text, spans = self.template.render_marked(messages)
        encoding = self.tokenizer.encode(text)
        ids = np.array(encoding.ids, np.int32)
        labels = np.full_like(ids, NOT_LEARNT)
        for span in spans:
            chosen = _tokens_of(encoding, *span)
            labels[chosen] = ids[chosen]
        return ids, labels

    def _text(self, text: str) -> Tokens:
        bos = self.template.special_tokens.get("bos_token")
        ends = (self.end_of_text, self.template.special_tokens["eos_token"])
        if not text.rstrip().endswith(ends):
            text += self.end_of_text
        # A text that was rendered from a template elsewhere may have its own beginning token.
        has_bos = bos is not None and text.startswith(bos)
        ids = np.array(self.tokenizer.encode(text, add_special_tokens=not has_bos).ids, np.int32)
        return ids, ids.copy()


def _tokens_of(encoding: Any, start: int, end: int) -> slice:
    """The tokens that hold at least one of the characters `start` to `end`, and any between them."""
    # Asked one by one: `encoding.offsets` makes a tuple a token, which costs two thirds of the tokenising itself.
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), 0)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), -1)
    # A character of several bytes may take several tokens; the call above names the first.
    while last + 1 < len(encoding) and (chars := encoding.token_to_chars(last + 1)) and chars[0] < end:
        last += 1
    return slice(first, last + 1)


def processes_for(rows: int, wanted: int | None) -> int:
    """Number of processes to encode `rows` rows: as many as asked for, or the cores that are worth starting."""
    if wanted is not None:
        return max(1, wanted)
    return max(1, min(len(os.sched_getaffinity(0)), rows // ROWS_WORTH_A_PROCESS))


def encode_rows(encoder: Encoder, rows: Sequence[Row], processes: int) -> Generator[Encoded]:
    """Each row encoded, in order, the same whatever the number of processes.

    Raises:
        DataError: a process died, or could not start.
    """
    if processes == 1:
        yield from map(encoder.encode, rows)
        return
    # Spawned, not forked: this process may hold threads (torch, arrow), and a fork of those can hang. A spawned one
    # imports only what encoding needs, torch not among it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(encoder,))
    try:
        yield from _in_order(pool, (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)), 3 * processes)
    except BrokenProcessPool:
        raise DataError(
            "a process that tokenises died, or could not start",
            "set `data.processes: 1`; a script that calls Puna needs its `if __name__ == '__main__':`",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, chunks: Iterable[Sequence[Row]], window: int) -> Generator[Encoded]:
    # A bounded window: submitting everything at once would hold a second copy of the dataset in the pipes.
    waiting: list[Future[list[Encoded]]] = []
    for chunk in chunks:
        waiting.append(pool.submit(_encode_chunk, chunk))
        if len(waiting) >= window:
            yield from waiting.pop(0).result()
    for future in waiting:
        yield from future.result()


# ------------------------------------------------------------------------------- in the other processes

_encoder: Encoder | None = None


def _start(encoder: Encoder) -> None:
    global _encoder
    # Ctrl-C reaches the whole process group: the parent decides; and no process outlives a parent that was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is one core's worth; threads on top would contend
    _encoder = encoder


def _encode_chunk(rows: Sequence[Row]) -> list[Encoded]:
    assert _encoder is not None
    return [_encoder.encode(row) for row in rows]
