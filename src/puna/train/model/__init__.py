"""The model that is trained: Puna's own Llama, LoRA, quantised weights, kernels, loading."""
