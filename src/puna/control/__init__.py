"""Stage 6, the control plane: from domain and store at the bottom to builds and the JSON API at the top."""
