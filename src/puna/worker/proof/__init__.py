"""Whether calls of an app's `infer` can meet: its source read as syntax trees, over the objects that are there."""
