"""transformers' fast tokenizers, changed in place: padding and truncation are set and used by one call at a time.

Both are state of the half in Rust: of two threads with different arguments, one got the other's padding, or the error
"Already borrowed".
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, Callable, List

from puna.worker.engines.engine import SAFE

CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# These set the state and use it, or use it without holding the interpreter's lock; those that a version has.
METHODS = ("_encode_plus", "_batch_encode_plus", "_decode", "set_truncation_and_padding", "_add_tokens")
_locks: List[Any] = []


def shim(module: Any) -> None:
    """Change the class of fast tokenizers in `transformers.tokenization_utils_fast`, or what it became in version 5."""
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is None or getattr(vars(kind).get("_decode"), SAFE, False):
            continue
        for method in METHODS:
            if callable(vars(kind).get(method)):
                setattr(kind, method, _alone(vars(kind)[method]))


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        # By the half in Rust: copies of a tokenizer share it.
        with _locks[id(getattr(self, "_tokenizer", None)) // 64 % len(_locks)]:
            return method(self, *arguments, **options)

    setattr(call, SAFE, True)
    return call


def _renew() -> None:
    """Also in a forked child, where nobody is left to give back what another thread held."""
    _locks[:] = [threading.RLock() for _ in range(32)]


_renew()
os.register_at_fork(after_in_child=_renew)
