"""Stage 2: plan, model, one run from top to bottom, report."""
