"""Stage 5: source snapshot, environment, bundle, and what the app said when it was tried."""
