"""What runs tells of itself: load, figures over time, use, deaths, logs."""
