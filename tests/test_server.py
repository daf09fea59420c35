"""The options of `puna up` reach its gateways: TLS, the sites whose pages may call, and the descriptors they share."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from load import load_factor
from puna.home import Home
from puna.instance import read_state

SITE = "https://app.example.com"


@pytest.mark.process
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_gateway_serves_over_tls_and_lets_the_pages_of_one_site_call(tmp_path: Path) -> None:
    home, certificate, key = Home(tmp_path / "home"), tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    argv = [sys.executable, "-m", "puna", "up", "--port", "0", "--cors-origin", SITE]
    argv += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    env = {**os.environ, "PUNA_HOME": str(home.root)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        try:
            end = time.monotonic() + 60 * load_factor()
            while not (url := str(read_state(home).get("url", ""))) and up.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert url.startswith("https://127.0.0.1:"), url
            with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=str(certificate))) as client:
                assert client.get("/v2/health/ready", timeout=30).status_code == 200
                asked = {"origin": SITE, "access-control-request-method": "POST"}
                reply = client.options("/v2/models/chat/infer", headers=asked, timeout=30)
                assert reply.headers["access-control-allow-origin"] == SITE
        finally:
            up.send_signal(signal.SIGTERM)
            said = up.communicate(timeout=60 * load_factor())[0]
    assert up.returncode == 0 and url in said
