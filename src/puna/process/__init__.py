"""Processes and what holds them: trees, guards, sandboxes, limits. The standard library only; it knows nobody."""
