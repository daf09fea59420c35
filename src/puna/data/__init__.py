"""Stage 1: chat templates and loss masks; load, sample, split, tokenise."""
