"""Processes with their imports done, which fork replicas on demand."""
