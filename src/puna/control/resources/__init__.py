"""Things that endpoints use and share: secrets, volumes, sources, adapters, models."""
