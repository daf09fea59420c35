"""What runs requests."""
