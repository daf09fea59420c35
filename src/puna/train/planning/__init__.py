"""The plan of a run before any weight is loaded: memory, time, steps."""
