"""The web page: no build step, the same JSON API as the CLI."""
