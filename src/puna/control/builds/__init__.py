"""Builds, side by side: the builder, the commands it runs, and what is kept of the past."""
