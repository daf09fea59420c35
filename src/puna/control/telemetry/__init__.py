"""Telemetry: load and deaths, history, use, logs, health."""
