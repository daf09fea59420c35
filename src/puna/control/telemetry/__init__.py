"""What runs tells of itself: load and deaths, history, use, logs, health."""
