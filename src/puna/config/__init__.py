"""The files that users write, read: recipe, project, runtime, schema; and the settings of endpoints."""
