"""Make the fixture home of a version: what its own `puna` leaves of a story that touches every kind of thing it keeps.

    make home ARGS="v0.2.0"          writes tests/homes/0.2.0-of-<the commit's date>.tar.gz

The version's tree is taken out of git, and its command line does the story: a run is trained, merged and published;
apps are deployed with secrets, a volume, the model, a traffic split and a repository whose push comes by a webhook.
Then `puna down`, and the home is packed less what is made anew (environments, logs, workspaces). `old_home.json` in it
says what `tests/stories/test_old_homes.py` must know: keys, the webhook's secret.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from git_server import GitServer
from webhook import push, signed

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("puna.db", "key", "credentials.json", "bundles", "sources", "registry", "runs", "models", "datasets", "volumes")
MOUNT = "/tmp/puna-old-home/words"
MODEL = "acme/tiny"

PLAIN = """import os


class InferlessPythonModel:
    def initialize(self):
        self.greeting = os.environ.get("GREETING", "hello")

    def infer(self, inputs):
        return {"text": "SHAPE" % (self.greeting, inputs["prompt"], os.environ.get("TOKEN", "no token"))}
"""
FIRST, SECOND = (PLAIN.replace("SHAPE", shape) for shape in ("%s %s, %s", "%s, %s: %s"))
SHELF = f"""import json
import os
from pathlib import Path

MODEL = "{MODEL}"


class InferlessPythonModel:
    def initialize(self):
        hub = Path(os.environ["HF_HUB_CACHE"]) / ("models--" + MODEL.replace("/", "--"))
        config = hub / "snapshots" / (hub / "refs" / "main").read_text() / "config.json"
        self.layers = json.loads(config.read_text())["num_hidden_layers"]
        self.words = Path(os.environ["NFS_VOLUME"], "words.txt").read_text()

    def infer(self, inputs):
        return {{"text": "%s: %s, %d layer" % (inputs["prompt"], self.words, self.layers)}}
"""
SCHEMA = 'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
RUNTIME = "build:\n  python_packages: []\n"
RECIPE = """name: tiny
base: ./base
data:
  dataset: demo
  take: 40
  test_fraction: 0.1
  max_length: 64
  processes: 1
quantization:
  load_in_4bit: false
lora:
  lora_r: 2
  lora_alpha: 4
training:
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  max_steps: 4
  logging_steps: 1
  eval_steps: 2
  save_steps: 4
  optim: adamw
"""


class Story:
    """One home, and the `puna` of one version on it."""

    def __init__(self, tree: Path, work: Path) -> None:
        self.tree, self.work, self.home = tree, work, work / "home"
        self.env = {**os.environ, "PYTHONPATH": str(tree / "src"), "PUNA_HOME": str(self.home)}
        self.env |= {"PUNA_GIT_HOSTS": "127.0.0.1", "OMP_NUM_THREADS": "1"}

    def puna(self, *words: str) -> Any:
        """What a command says as JSON; it must succeed."""
        print("$ puna", *words, flush=True)
        command = [sys.executable, "-P", "-m", "puna", *words, "--json"]
        done = subprocess.run(command, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            sys.exit(f"`puna {' '.join(words)}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        lines = done.stdout.strip().splitlines()
        whole = next((n for n in range(len(lines)) if lines[n] in ("{", "[")), len(lines) - 1)
        return json.loads("\n".join(lines[whole:])) if lines else None

    def app(self, folder: str, text: str) -> str:
        """The folder of an app without packages."""
        path = self.work / folder
        path.mkdir()
        for name, content in {"app.py": text, "input_schema.py": SCHEMA}.items():
            (path / name).write_text(content)
        (path / "inferless-runtime-config.yaml").write_text(RUNTIME)
        return str(path)

    def base(self) -> None:
        """A base model of a few kilobytes, with the tokenizer of the demo."""
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        demo, folder = self.tree / "src" / "puna" / "demo" / "base", self.work / "base"
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
        known = {**json.loads((demo / "config.json").read_text()), **sizes, "tie_word_embeddings": True}
        LlamaForCausalLM(LlamaConfig(**known)).bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(demo).save_pretrained(folder)

    def train(self) -> None:
        """A run of four steps, merged and published."""
        self.base()
        (self.work / "recipe.yaml").write_text(RECIPE)
        self.puna("train", "recipe.yaml")
        self.puna("merge", "last")
        self.puna("publish", "last", MODEL, "--alias", "stable")

    def serve(self) -> dict[str, str]:
        """Everything that an endpoint can have; what a test must know of it."""
        runtime = Path(self.app("app", FIRST)) / "inferless-runtime-config.yaml"
        for name in ("app", "mine"):
            self.puna("runtime", "upload", str(runtime), "--name", name)
        self.puna("secret", "set", "tokens", "TOKEN=s3cret")
        self.puna("volume", "create", "words")
        (self.work / "words.txt").write_text("words of then")
        self.puna("volume", "cp", "words.txt", "words:/words.txt")
        second, cpu = self.app("second", SECOND), ("--gpu", "cpu")
        self.puna("deploy", "app", "--name", "plain", "--runtime", "app", *cpu)
        self.puna("deploy", second, "--name", "plain", "--runtime", "app", *cpu)
        more = ("--env", "GREETING=hey", "--secret", "tokens", "--runtime", "mine")
        self.puna("deploy", "app", "--name", "scaled", *more, *cpu)
        self.puna("deploy", self.app("shelf", SHELF), "--name", "shelf", "--volume", f"words={MOUNT}", *cpu)
        self.puna("deploy", "app", "--name", "divided", *cpu)
        self.puna("deploy", second, "--name", "divided", "--traffic", "25", *cpu)
        keys = {"all": self.puna("key", "create", "ci")["key"]}
        keys["plain"] = self.puna("key", "create", "plain", "--endpoint", "plain", "--rate", "1000/min")["key"]
        for name in ("plain", "scaled", "shelf", "divided"):
            self.puna("call", name, "prompt=you")
        return keys

    def rebuild(self, server: GitServer) -> str:
        """An endpoint of a repository, and a push that it was told of; the webhook's secret."""
        files = {"app.py": FIRST, "input_schema.py": SCHEMA, "inferless-runtime-config.yaml": RUNTIME}
        server.repository("hooked", files)
        address = server.url("hooked")
        self.puna("deploy", "--git", address, "--name", "hooked", "--auto-rebuild", "--gpu", "cpu")
        hook, commit = self.puna("webhook", "hooked"), server.push("hooked", {"app.py": SECOND})
        body = push(address, commit)
        httpx.post(hook["url"], content=body, headers=signed(body, hook["secret"], "d-1")).raise_for_status()
        self.until(lambda: self.puna("ps", "hooked")["revision"] == 2)
        return str(hook["secret"])

    def until(self, condition: Any) -> None:
        """Wait for at most five minutes."""
        end = time.monotonic() + 300
        while not condition():
            if time.monotonic() > end:
                sys.exit("it did not happen in five minutes")
            time.sleep(1.0)

    def whole(self) -> dict[str, Any]:
        """The story from the first command to `puna down`."""
        self.home.mkdir()
        self.train()
        server = GitServer(self.work / "git")
        (self.work / "git").mkdir()
        up = [sys.executable, "-P", "-m", "puna", "up", "--port", "0", "--detach"]
        subprocess.run(up, env=self.env, cwd=self.work, check=True, timeout=120)
        try:
            known: dict[str, Any] = {"keys": self.serve(), "webhook_secret": self.rebuild(server)}
            self.until(lambda: self.puna("usage"))
        finally:
            self.puna("down")
            server.close()
        return known


def main() -> None:
    """Make the home of a commit or tag, and pack it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", help="a tag or a commit")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "homes", help="the folder of the archive")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="old-home-") as folder:
        work, tree = Path(folder), Path(folder) / "tree"
        tree.mkdir()
        source = subprocess.run(["git", "archive", options.ref], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x", "-C", str(tree)], input=source, check=True)
        story = Story(tree, work)
        (story.home.parent / "old_home.json").write_text(json.dumps(story.whole(), indent=1))
        said = subprocess.run([sys.executable, "-P", "-m", "puna", "--version"], env=story.env, capture_output=True)
        version = said.stdout.decode().split()[-1]
        date = subprocess.run(["git", "log", "-1", "--format=%cs", options.ref], cwd=ROOT, capture_output=True).stdout
        archive = options.out / f"{version}-of-{date.decode().strip()}.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(work / "old_home.json", "old_home.json")
            for name in KEPT:
                if (story.home / name).exists():
                    packed.add(story.home / name, name)
        print(f"{archive}: {archive.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
