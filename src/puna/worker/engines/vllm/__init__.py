"""vLLM, changed in place: one loop, adapters, sleep."""
