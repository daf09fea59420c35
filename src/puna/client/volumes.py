"""Calls about volumes and their files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote

from puna.client.transport import Json, Transport, part


class VolumeCalls(Transport):
    """Volumes."""

    def create_volume(self, name: str) -> Json:
        """Make a volume, unless it is there."""
        return self._call("POST", "/volumes", json={"name": name})

    def volumes(self) -> list[Json]:
        """Every volume, and the endpoints that use it."""
        return self._items("/volumes")

    def delete_volume(self, name: str) -> Json:
        """Delete a volume that no endpoint uses, with all that is in it."""
        return self._call("DELETE", f"/volumes/{part(name)}")

    def volume_entries(self, name: str, path: str = "", recursive: bool = False) -> list[Json]:
        """What is in a folder of a volume, or the file at `path`."""
        return self._items(f"/volumes/{part(name)}/entries", {"path": path, "recursive": int(recursive)})

    def volume_file(self, name: str, path: str) -> Iterator[bytes]:
        """A file's content, in pieces."""
        return self._stream(f"/volumes/{part(name)}/files/{quote(path)}", {}, lambda reply: reply.iter_bytes())

    def put_volume_file(self, name: str, path: str, content: BinaryIO) -> Json:
        """Write a file of a volume."""
        return self._call("PUT", f"/volumes/{part(name)}/files/{quote(path)}", content=content)

    def delete_volume_file(self, name: str, path: str) -> Json:
        """Remove a file or folder of a volume."""
        return self._call("DELETE", f"/volumes/{part(name)}/files/{quote(path)}")

    def volume(self, name: str) -> Json:
        """One volume."""
        return self._call("GET", f"/volumes/{part(name)}")
