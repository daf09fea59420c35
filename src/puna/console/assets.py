"""The console's files as HTTP answers: one page that is asked for anew, all else under a digest and kept for ever."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from starlette.responses import Response

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
# Nothing from anywhere else, no inline script or style, no frame around it, no form that leaves by itself.
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
FOR_EVER = "public, max-age=31536000, immutable"


class Assets:
    """Every file of the folder, read once."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Read the files below `folder`; Python's own stay out."""
        found = sorted(p for p in folder.rglob("*") if p.suffix in (*KINDS, ".svg"))
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}
        digest = hashlib.sha256()
        for name, content in self.files.items():
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        self.digest = digest.hexdigest()[:16]

    def page(self, if_none_match: str = "") -> Response:
        """The page at `/`: never kept without asking, and then 304."""
        modules = [name for name in self.files if name.endswith(".js") and name != "theme.js"]
        preload = "\n".join(f'<link rel="modulepreload" href="{self._path(name)}">' for name in modules)
        text = self.files["index.html"].decode().replace("<!-- preload -->", preload)
        body = text.replace("{{console}}", f"/console/{self.digest}").encode()
        headers = {**HEADERS, "content-type": KINDS[".html"], "cache-control": "no-cache", "etag": f'"{self.digest}"'}
        if headers["etag"] in if_none_match:
            return Response(b"", 304, headers)
        return Response(body, 200, headers)

    def file(self, digest: str, name: str) -> Response:
        """One file of the version that `digest` names; another version's is gone."""
        content = self.files.get(name) if digest == self.digest else None
        if content is None or name == "index.html":
            headers = {**HEADERS, "content-type": "text/plain; charset=utf-8"}
            return Response(b"there is no such file\n", 404, headers)
        suffix = Path(name).suffix
        kind = KINDS.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
        return Response(content, 200, {**HEADERS, "content-type": kind, "cache-control": FOR_EVER})

    def _path(self, name: str) -> str:
        return f"/console/{self.digest}/{name}"
