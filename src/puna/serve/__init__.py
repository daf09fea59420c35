"""Stage 7: gateway, admission, dispatch, pending queue, routing."""
