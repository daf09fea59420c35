"""The proof that no two calls of `infer` meet: its source read as syntax trees, over the objects that are there."""
