"""Stage 7: gateway, waiting room, routing, autoscaler."""
