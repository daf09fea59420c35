"""Changes to libraries at the moment that the app imports them: a finder on sys.meta_path, and nothing before."""

from __future__ import annotations

import functools
import sys
from typing import Any, Dict

from puna.worker import share
from puna.worker.app import calllog, faults, imports
from puna.worker.engines.transformers import shims as transformers_shims
from puna.worker.engines.vllm import llm as vllm_llm
from puna.worker.engines.vllm import options as vllm_options
from puna.worker.share import Hook, ShareFinder


def install(concurrency: int = 0) -> None:
    """From now on the libraries below are changed when they are imported; those that are already, at once.

    `concurrency` is what was asked for explicitly, 0 for nothing. A zygote calls this before its imports, and its fork
    again.
    """
    vllm_options.Asked.concurrency = concurrency
    hooks: Dict[str, Hook] = {
        "inferless.api": imports.shim_inferless,
        "vllm.config.cache": vllm_options.hash_without_size,
        "vllm.entrypoints.llm": vllm_llm.shim,
        "transformers.modeling_utils": transformers_shims.shim_loading,
        "transformers.generation.utils": transformers_shims.shim_generate,
        "transformers.tokenization_utils_fast": transformers_shims.shim_tokenizers,
        "transformers.tokenization_utils_tokenizers": transformers_shims.shim_tokenizers,
        **share.HOOKS,
    }
    if not any(isinstance(finder, ShareFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ShareFinder({name: functools.partial(_apply, hook) for name, hook in hooks.items()}))
    for name, hook in hooks.items():
        module = sys.modules.get(name)
        if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
            _apply(hook, module)


def _apply(hook: Hook, module: Any) -> None:
    try:
        hook(module)
    except Exception as error:  # noqa: BLE001 - the app goes on with the library as it is; the log says why
        calllog.note("%s is used as it is, calls run one at a time:\n%s" % (module.__name__, faults.whole(error)))
