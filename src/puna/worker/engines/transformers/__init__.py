"""transformers, changed in place: calls become rows of one running batch."""
