"""Stage 6: states, store, plan, reconciler, secrets and the JSON API."""
