"""Push and pull over real HTTP with the stock client, with xet and without, and what is said when the hub will not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from publish.conftest import VERIFIED
from publish.hub_server import TOKEN, File, Hub, Repo
from puna.artifacts import Model, drafting
from puna.home import Home
from puna.publish.registry import RegisteredVersion, Registry

pytestmark = pytest.mark.process

PUSH = """
import sys
from puna.errors import PunaError
from puna.home import Home
from puna.publish.hub import push
from puna.publish.registry import Registry
from pathlib import Path
try:
    print("URL", push(Registry(Home(Path(sys.argv[1]))).resolve("acme/chat"), sys.argv[2], private=len(sys.argv) > 3))
except PunaError as error:
    print("ERROR", type(error).__name__, "|", error.message, "|", error.hint)
"""
RESOLVE = """
import sys
from puna.errors import PunaError
from puna.home import Home
from puna.publish.resolve import resolve_base
from pathlib import Path
class Watch:
    def stage(self, name): pass
    def note(self, text): pass
    def advance(self, done, total, **figures): print("ADVANCE", done, total)
try:
    base = resolve_base(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None, Home(Path(sys.argv[1])), Watch())
    print("BASE", base.path, base.ref)
except PunaError as error:
    print("ERROR", type(error).__name__, "|", error.message, "|", error.hint)
"""
LOOK = """
import sys
from puna.errors import PunaError
from puna.publish.hub import look
try:
    print("COMMIT", look(*sys.argv[1:]))
except PunaError as error:
    print("ERROR", type(error).__name__, "|", error.message, "|", error.hint)
"""
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
print("EOS", model.generation_config.eos_token_id, AutoTokenizer.from_pretrained(sys.argv[1]).eos_token)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with `acme/chat`, a real tiny Llama of 3 MB: chunks of xet are 64 KB."""
    home = Home(tmp_path_factory.mktemp("hub") / "home")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=3, bos_token_id=0,
    )  # fmt: skip
    with drafting("model", home.models) as draft:
        LlamaForCausalLM(config).bfloat16().save_pretrained(draft.path)
        Tokenizer(models.WordLevel({"a": 0, "<e>": 3}, unk_token="a")).save(str(draft.path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<e>"}
        (draft.path / "tokenizer_config.json").write_text(json.dumps(settings))
        draft.made_from |= {"base": "/home/me/secret-base", "adapter": "a" * 64}
        draft.metrics["verification"] = VERIFIED
    Registry(home).publish(Model.open(draft.final), "acme/chat")
    return home


@pytest.fixture
def version(shared: Home) -> RegisteredVersion:
    return Registry(shared).resolve("acme/chat")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def run(code: str, *args: object, cache: Path, url: str, token: str = TOKEN, **env: str) -> str:
    """Run code in a process of its own: huggingface_hub reads its settings when it is imported."""
    ours = ("HF_", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_TOKEN": token, "PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=clean | settings | {"HF_HUB_DISABLE_TELEMETRY": "1"} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_what_is_pushed_comes_back_whole(shared: Home, version: RegisteredVersion, tmp_path: Path, xet: bool) -> None:
    with Hub(xet=xet) as hub:
        env = {} if xet else {"HF_HUB_DISABLE_XET": "1"}
        out = run(PUSH, shared.root, "acme/llama", cache=tmp_path / "push", url=hub.url, **env)
        assert f"URL {hub.url}/acme/llama" in out, out
        repo = hub.repos["acme/llama"]
        pushed = repo.commits[repo.head]
        sent = {p.name for p in version.path.iterdir()} - {"manifest.json"}
        assert set(pushed) == sent | {"README.md"}
        assert all(pushed[name].data == (version.path / name).read_bytes() for name in sent)
        assert b"secret-base" not in b"".join(file.data for file in pushed.values())
        assert repo.messages[-1] == f"acme/chat:1 ({version.digest[:12]})"
        assert any("/xorbs/" in line for line in hub.seen) == xet and any("/lfs/" in line for line in hub.seen) != xet

        got = run(RESOLVE, shared.root, "acme/llama", cache=tmp_path / "pull", url=hub.url)
        path, ref = got.split("BASE ")[1].split()
        assert ref == f"hub:acme/llama@{repo.head}" and "README.md" not in os.listdir(path)
        assert all((Path(path) / name).read_bytes() == (version.path / name).read_bytes() for name in sent)
        total = sum((version.path / name).stat().st_size for name in sent)
        assert f"ADVANCE {total} {total}" in got

        loaded = run(LOAD, "acme/llama", tmp_path / "again", cache=tmp_path / "load", url=hub.url)
        assert "EOS 3 <e>" in loaded
        same = (version.path / "model.safetensors").read_bytes()
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == same


def test_a_second_push_is_one_more_commit_without_stale_weights(shared: Home, hub: Hub, tmp_path: Path) -> None:
    for _ in range(2):
        out = run(PUSH, shared.root, "acme/llama", "private", cache=tmp_path, url=hub.url)
        assert "URL" in out, out
        repo = hub.repos["acme/llama"]
        files = repo.commits[repo.head]
        repo.commit(files | {"model-00001-of-00002.safetensors": files["README.md"]}, "by hand")
    run(PUSH, shared.root, "acme/llama", cache=tmp_path, url=hub.url)
    assert repo.private and "model-00001-of-00002.safetensors" not in repo.commits[repo.head]
    assert "model.safetensors" in repo.commits[repo.head]


def test_a_hub_without_xet_names_the_setting(shared: Home, tmp_path: Path) -> None:
    with Hub(xet=False) as hub:
        out = run(PUSH, shared.root, "acme/llama", cache=tmp_path, url=hub.url)
        assert "ERROR PublishError" in out and "HF_HUB_DISABLE_XET=1" in out


def test_a_wrong_token_is_told_what_to_set(shared: Home, hub: Hub, tmp_path: Path) -> None:
    out = run(PUSH, shared.root, "acme/llama", cache=tmp_path, url=hub.url, token="hf_wrong")
    assert "ERROR PublishError" in out and "does not know the token" in out and "set HF_TOKEN" in out


def test_a_hub_out_of_reach_is_said_in_one_sentence(shared: Home, tmp_path: Path) -> None:
    with socket.socket() as listener:  # bound and not listening: nobody else takes the port, and it refuses
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        pushed = run(PUSH, shared.root, "acme/llama", cache=tmp_path, url=url)
        pulled = run(RESOLVE, shared.root, "acme/llama", cache=tmp_path, url=url)
    assert "ERROR PublishError" in pushed and f"{url} cannot be reached" in pushed and "HF_ENDPOINT" in pushed
    assert "ERROR NotFoundError" in pulled and "cannot be reached" in pulled


def test_a_base_that_is_missing_gated_or_offline_is_explained(shared: Home, hub: Hub, tmp_path: Path) -> None:
    run(PUSH, shared.root, "acme/llama", cache=tmp_path / "push", url=hub.url)
    at = {"cache": tmp_path / "pull", "url": hub.url}
    missing = run(RESOLVE, shared.root, "acme/chats", **at)
    assert "ERROR NotFoundError" in missing and "did you mean `acme/chat`?" in missing
    assert "no such revision" in run(RESOLVE, shared.root, "acme/llama", "v9", **at)
    assert "HF_HUB_OFFLINE is set" in run(RESOLVE, shared.root, "acme/llama", HF_HUB_OFFLINE="1", **at)
    hub.repos["acme/pickled"] = Repo()
    hub.repos["acme/pickled"].commit({"config.json": File(b"{}"), "pytorch_model.bin": File(b"\x80\x02")}, "old")
    assert "never fetched" in run(RESOLVE, shared.root, "acme/pickled", **at)
    assert not any("pytorch_model.bin" in line for line in hub.seen)
    hub.repos["acme/llama"].gated = True
    gated = run(RESOLVE, shared.root, "acme/llama", token="hf_wrong", **at)
    assert "it is gated" in gated and f"{hub.url}/acme/llama " in gated
    assert "did you mean" not in gated
    fetched = run(RESOLVE, shared.root, "acme/llama", **at).partition("BASE")[2]
    offline = run(RESOLVE, shared.root, "acme/llama", HF_HUB_OFFLINE="1", **at).partition("BASE")[2]
    assert fetched and fetched == offline


def test_whether_an_app_can_have_a_model_is_found_out_without_fetching_it(
    shared: Home, hub: Hub, tmp_path: Path
) -> None:
    run(PUSH, shared.root, "acme/llama", cache=tmp_path / "push", url=hub.url)
    at = {"cache": tmp_path / "look", "url": hub.url}
    hub.seen.clear()
    assert f"COMMIT {hub.repos['acme/llama'].head}" in run(LOOK, "acme/llama", **at)
    assert hub.seen == ["GET /api/models/acme/llama"]
    missing = run(LOOK, "acme/nowhere", **at)
    assert "ERROR NotFoundError | acme/nowhere was not found" in missing and "no such model" in missing
    assert "HF_HUB_OFFLINE is set" in run(LOOK, "acme/llama", HF_HUB_OFFLINE="1", **at)
    hub.repos["acme/llama"].gated = True
    # The control plane's own HF_TOKEN is not the app's: what the app will not have opens nothing here.
    gated = run(LOOK, "acme/llama", **at)
    assert "it is gated" in gated and f"{hub.url}/acme/llama " in gated
    assert "COMMIT" in run(LOOK, "acme/llama", TOKEN, **at)
    hub.repos["acme/pickled"] = Repo()
    hub.repos["acme/pickled"].commit({"config.json": File(b"{}"), "pytorch_model.bin": File(b"\x80\x02")}, "old")
    assert "no config.json with safetensors" in run(LOOK, "acme/pickled", **at)
