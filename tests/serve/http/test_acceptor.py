"""The acceptor: TLS and plain clients, and who lets whom in when several gateways share it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from puna.serve.http.acceptor import SLACK, AcceptingServer, ClientCounts, CountedConnections
from puna.serve.http.connection import ClientConnection
from serve.conftest import until

pytestmark = pytest.mark.process
ASK = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate for localhost, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path


@contextlib.asynccontextmanager
async def accepting(counts: ClientCounts | None = None, **options: Any) -> AsyncIterator[tuple[AcceptingServer, int]]:
    """A server on a socket that was bound before, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        fixed: dict[str, Any] = {"http": ClientConnection, "ws": "none", "log_level": "critical"}
        server = AcceptingServer(uvicorn.Config(hello, timeout_graceful_shutdown=1, **fixed, **options), counts)
        task = asyncio.ensure_future(server.serve(sockets=[bound]))
        await until(lambda: server.started or task.done())
        try:
            yield server, bound.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def answered(port: int, **how: Any) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **how)
    try:
        writer.write(ASK)
        return await reader.readexactly(len(b"HTTP/1.1 200"))
    finally:
        writer.close()
        await writer.wait_closed()


def test_tls_clients_are_let_in_and_those_that_speak_something_else_harm_nobody(certificate: Path) -> None:
    async def main() -> None:
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with accepting(ssl_certfile=str(certificate), ssl_keyfile=str(certificate)) as (_, port):
            assert await answered(port, ssl=trusted, server_hostname="localhost") == b"HTTP/1.1 200"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ASK)
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
            writer.close()
            assert await answered(port, ssl=trusted, server_hostname="localhost") == b"HTTP/1.1 200"

    uvloop.run(asyncio.wait_for(main(), 20))


def test_who_has_more_clients_still_lets_one_in_when_its_neighbour_does_not() -> None:
    async def main() -> None:
        fd = os.memfd_create("counts")
        os.ftruncate(fd, 8)
        async with accepting(ClientCounts(fd, 0)) as (server, port):
            for _ in range(SLACK + 3):  # the neighbour never takes its turn
                assert await answered(port) == b"HTTP/1.1 200"
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLACK + 3)]
            await until(lambda: len(server.server_state.connections) == len(held))
            assert memory(fd) == [len(held), 0]
            for _, writer in held:
                writer.close()
            await until(lambda: memory(fd)[0] == 0)
        os.close(fd)

    uvloop.run(asyncio.wait_for(main(), 20))


def test_a_gateway_is_ahead_when_a_neighbour_has_fewer_clients_by_more_than_the_slack() -> None:
    fd = os.memfd_create("counts")
    os.ftruncate(fd, 8)
    mine, other = ClientCounts(fd, 0), ClientCounts(fd, 1)
    clients = CountedConnections(mine)
    for number in range(SLACK):
        clients.add(number)
    assert not mine.is_ahead and not other.is_ahead
    clients.add("one more")
    assert mine.is_ahead and not other.is_ahead
    clients.discard("one more")
    assert not mine.is_ahead
    os.close(fd)


def memory(fd: int) -> list[int]:
    """The counts as they stand."""
    return [int.from_bytes(os.pread(fd, 4, 4 * index), "little") for index in range(2)]
