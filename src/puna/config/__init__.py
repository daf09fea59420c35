"""What the user writes: recipe, project, runtime, schema."""
