"""Shaped as vLLM: one engine, stepped, continuous batching, names found when they are asked for."""

import importlib

HOMES = {
    "LLM": "vllm.entrypoints.llm",
    "SamplingParams": "vllm.sampling_params",
    "AsyncLLMEngine": "vllm.engine.async_llm_engine",
    "AsyncEngineArgs": "vllm.engine.arguments",
    "LLMEngine": "vllm.engine.llm_engine",
}


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(HOMES[name]), name)
