"""The client of a running Puna, `puna.client.Client`."""

from puna.client.client import Client

__all__ = ["Client"]
