"""Puna: from Llama-3 base weights to a scale-to-zero endpoint on machines its user owns."""

__version__ = "0.2.0"
