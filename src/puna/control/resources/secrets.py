"""Secret values at rest: AES-GCM under a key file outside the database; values leave only into an app's environment."""

from __future__ import annotations

import hmac
import json
import os
import secrets as random
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from puna import names
from puna.control.store.keys import KeyStore
from puna.errors import MachineError

NONCE_BYTES = 12


class Seal:
    """Encryption of texts at rest, and fingerprints that compare two without keeping either."""

    def __init__(self, key_file: Path) -> None:
        key = _key(key_file)
        self._cipher = AESGCM(key)
        self._mac = hmac.digest(key, b"puna fingerprints", "sha256")

    def close(self, plain: bytes, about: str) -> bytes:
        """The text, sealed; `about` is authenticated with it: a row copied under another name does not open."""
        nonce = random.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """The text again.

        Raises:
            InvalidTag: it was sealed with another key file, or about something else.
        """
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about.encode())

    def fingerprint(self, *parts: bytes) -> str:
        """64 hex digits that are the same for the same parts; without the key file nobody can try texts out on them."""
        mac = hmac.new(self._mac, digestmod="sha256")
        for part in parts:
            mac.update(len(part).to_bytes(8, "big") + part)
        return mac.hexdigest()


class Secrets:
    """Named sets of values in the store, sealed."""

    def __init__(self, store: KeyStore, key_file: Path) -> None:
        self._store = store
        self.seal = Seal(key_file)

    def save(self, name: str, values: Mapping[str, str], now: float) -> None:
        """Seal and keep a set, in place of one of that name.

        Raises:
            UsageError: a name that cannot be an environment variable.
        """
        names.check("secret", name)
        for key in values:
            names.check("variable", key, what="environment variable")
        plain = json.dumps({k: str(v) for k, v in values.items()}).encode()
        self._store.save_secret(name, sorted(values), self.seal.close(plain, name), now)

    def open(self, names: Iterable[str]) -> dict[str, str]:
        """The values of these sets, the later ones winning.

        Raises:
            NotFoundError: there is no such set.
            MachineError: the key file is not the one they were sealed with.
        """
        values: dict[str, str] = {}
        for name in names:
            sealed = self._store.sealed_secret(name)
            try:
                plain = self.seal.open(sealed, name)
            except InvalidTag:
                raise MachineError(
                    f"secret `{name}` cannot be opened: the key file has changed",
                    f"put the old key file back, or `puna secret set {name} ...` again",
                ) from None
            values |= json.loads(plain)
        return values


def _key(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise MachineError(f"{path} is readable by others", f"chmod 600 {path}") from None
    else:
        with os.fdopen(fd, "wb") as file:
            file.write(AESGCM.generate_key(256))
            file.flush()
            os.fsync(file.fileno())
    key = path.read_bytes()
    if len(key) != 32:
        raise MachineError(f"{path} is damaged: {len(key)} bytes instead of 32", "put the key file back")
    return key
