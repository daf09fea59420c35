"""What the serving benchmark starts and drives: Puna and its peers with one no-op handler, and the load generator."""
