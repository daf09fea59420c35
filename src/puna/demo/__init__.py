"""The tiny Llama, its data, its recipe."""
