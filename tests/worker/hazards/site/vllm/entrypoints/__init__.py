"""What apps call."""
