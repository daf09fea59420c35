"""What a client asks of a running Puna, one module a noun; `puna.client.Client` has all of it."""

from puna.client.client import Client

__all__ = ["Client"]
