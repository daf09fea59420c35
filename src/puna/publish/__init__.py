"""Stage 4: the local registry and the Hugging Face Hub."""
