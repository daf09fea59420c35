"""Stage 3: adapter and base become one model, verified against the trained one."""
