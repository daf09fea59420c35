"""Runtime files that say more than packages: no option, address, tag or nesting in them does anything of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from puna.config import runtime
from puna.errors import BuildError, RuntimeSpecError
from puna.home import Home
from puna.packaging import environment
from security.conftest import Tally

PACKAGES = [
    *(
        "torch; rm -rf /",
        "torch && touch x",
        "torch | sh",
        "torch `touch x`",
        "torch $(touch x)",
        "torch > /etc/passwd",
    ),
    *("-r /etc/passwd", "-r/etc/passwd", "--requirement=/etc/passwd", "-c /etc/passwd", "--constraint /etc/passwd"),
    *("-e .", "-e /etc", "--editable=/etc", "-e file:///etc", "-e git+file:///etc", "-e ext::sh", "-e ../x", "-e"),
    *("--index-url file:///etc", "--index-url=ftp://evil", "-i evil", "--find-links /etc", "-f file:///", "-f ../x"),
    *("--index-url", "--extra-index-url gopher://x/", "--index-url 'http://a b'", "--index-url http://", "-i -r"),
    *("--target /", "--prefix=/usr", "--root /", "--user", "--python /bin/sh", "--config-settings a=b", "--log /etc/x"),
    *("--cert /etc/x", "--client-cert /etc/x", "--proxy http://evil", "--cache-dir /", "--src /", "--report /etc/x"),
    *(
        "--trusted-host ../x",
        "--trusted-host 'a b'",
        "--no-binary",
        "--only-binary ''",
        "--global-option=x",
        "--hash=x",
    ),
    *("--break-system-packages", "--system", "--override /etc/x", "--build-constraint x", "--keyring-provider x"),
    *("file:///etc/passwd", "torch @ file:///etc/passwd", "git+file:///etc", "git+ext::sh -c touch", "git+git://h/a"),
    *("git+ssh://-oProxyCommand=touch/a", "git+ssh://git@-oProxyCommand=touch/a", "git+https://-x/a", "https://-x/a"),
    *(
        "hg+https://h/a",
        "svn+https://h/a",
        "bzr+lp:a",
        "ftp://h/a.whl",
        "./a.whl",
        "/a.whl",
        "../a.whl",
        "~/a.whl",
        ".",
    ),
    *(
        "torch\nnumpy",
        "torch\n-r /etc/passwd",
        "torch\r\n--index-url http://evil",
        "torch\0",
        "torch\x0bnumpy",
        "\x1b[2J",
    ),
    *("torch\u2028numpy", "torch @ https://", "torch @ https://h/a b", "torch==1; os.system('x')", "torch==1 ; x"),
    *("torch; extra == 'x' or __import__('os')", "torch; python_version < '3' ; y", "torch[../x]", "torch==../x", "@x"),
    *("'torch", '"torch', "torch\\", "-", "--", "---", "==1", "torch==", "torch=1", "torch ==1 ==2 x", "%0a"),
    *("a" * 1001, "a" + " " * 5000 + "!", "tоrch"),
]
APT = [
    *("foo; reboot", "-o APT::Update::Pre-Invoke::=touch", "--option=x", "-y", "--", "foo -o x", "foo\nbar", "foo\0"),
    *(
        "foo-",
        "openssh-server-",
        "dpkg-:amd64-",
        "foo=1.0-",
        "foo/testing",
        "foo^",
        "^foo$",
        "foo*",
        "f?o",
        "[ab]",
        "(x)",
    ),
    *("./a.deb", "/a.deb", "../a.deb", "http://h/a.deb", "$(touch x)", "`touch x`", "foo|sh", "foo&", "foo>x", "foo<x"),
    *("FOO", "Foo", "foo_bar", "f", "", "'", '"', "~nfoo", "?name(x)", "foo=", "=1", "foo=1 2;x", "foo=$(x)", "+foo"),
]
PYTHONS = [
    *(
        "3.10; touch x",
        "/bin/sh",
        "../python",
        "-c",
        "--help",
        "3.10\n3.11",
        "latest",
        ">=3.8",
        "3.x",
        "3.10 -m x",
        "pypy",
    ),
    *("cpython@/tmp", "٣.١٠", "3.1.2.3", "3..1", ".", "99999.1", "3.10rc1", "$(x)", "3.10\0", "file:///x"),
]
TEXTS = {
    "a tag": "build: !!python/object/apply:os.system [touch x]",
    "a tag of a name": "build: {run: [!!python/name:os.system ]}",
    "a tag of a module": "!!python/module:os",
    "a tag of a new object": "!!python/object/new:os.system [touch x]",
    "a tag of Ruby": "build: !ruby/object:Gem::Installer {}",
    "a tag of its own": "build: {run: [!include /etc/passwd]}",
    "a wrong integer": "build: {python_version: !!int x}",
    "an empty integer": "build: {python_version: !!int ''}",
    "a wrong float": "build: {python_version: !!float x}",
    "a wrong truth": "build: {python_version: !!bool x}",
    "a wrong date": "build: {python_version: 2024-99-99}",
    "a wrong binary": "build: {run: !!binary x}",
    "a date with a large zone": "build: 0001-01-01 00:00:00 +23:59",
    "5000 digits": "build: {python_version: " + "9" * 5000 + "}",
    "a key twice": "build:\n  run: [a]\n  run: [b]\n",
    "build twice": "build: {run: [a]}\nbuild: {run: [b]}\n",
    "a key twice, by a quote": "build: {run: [a], 'run': [b]}\n",
    "two documents": "build: {}\n---\nbuild: {run: [x]}\n",
    "another key": "build: {}\nrun: [x]\n",
    "another key of build": "build: {pip_options: [--target=/]}",
    "another case": "build: {Run: [x]}",
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "build: {run: *i}\n",
    "laughs in a list": "build:\n  run:\n  - &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"  - &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "laughs as a key": "build: {? [&a [x], *a] : x}",
    "itself": "build: &a {run: *a}",
    "no anchor": "build: *a",
    "5000 brackets": "build: " + "[" * 5000,
    "5000 braces": "build: " + "{" * 5000,
    "5000 dashes": "- " * 5000,
    "64 KiB": "#" * (1 << 16) + "\nbuild: {}",
    "10 MiB": "build: {run: [" + "x," * (5 << 20) + "]}",
    "a list": "- build",
    "text": "build",
    "NUL": "build: {run: ['\0']}",
    "half a character": "build: {run: ['\ud800']}",
    "a list in a list": "build: {run: [[touch x]]}",
    "a mapping in a list": "build: {run: [{a: b}]}",
    "numbers as packages": "build: {python_packages: [1]}",
    "a mapping of packages": "build: {python_packages: {a: b}}",
}


def refused(text: str) -> bool:
    try:
        runtime.parse_text(text)
    except RuntimeSpecError:
        return True
    return False


def of(**build: Any) -> str:
    return str(yaml.safe_dump({"build": build}, allow_unicode=True))


def test_what_is_no_package_option_or_version_is_refused(tally: Tally) -> None:
    for entry in PACKAGES:
        tally(f"python_packages {entry[:60]!r}", refused=refused(of(python_packages=[entry])))
    for entry in APT:
        said = of(system_packages=[entry])
        nothing = entry == "" and runtime.parse_text(said).system_packages == ()
        tally(f"system_packages {entry!r}", refused=nothing or refused(said))
    for entry in PYTHONS:
        for key in ("python_version", "cuda_version"):
            tally(f"{key} {entry!r}", refused=refused(of(**{key: entry})))
    for entry in ("ubuntu\nRUN touch x", "a\0b", "a\rb", "\x1b[2J"):
        tally(f"base_image {entry!r}", refused=refused(of(base_image=entry)))


def test_what_people_write_is_not_refused() -> None:
    packages = [
        "torch==2.1",
        "vllm[extra]>=1,<2",
        "a @ https://h/a.whl",
        "git+https://github.com/a/b@main",
        "x; os_name=='nt'",
    ]
    packages += ["--extra-index-url https://download.pytorch.org/whl/cu121", "--pre", "-i https://index.example/simple"]
    spec = runtime.parse_text(
        of(python_packages=packages, system_packages=["libgl1", "g++", "libstdc++6", "zz=1:2.0-1"])
    )
    assert len(spec.python_packages) == 5 and spec.system_packages == ("libgl1", "g++", "libstdc++6", "zz=1:2.0-1")


def test_no_text_does_more_than_say_what_is_wrong_with_it(tally: Tally, tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for name, text in TEXTS.items():
            began = time.process_time()
            is_refused = refused(text)
            tally(name, refused=is_refused and time.process_time() - began < 10 and list(tmp_path.iterdir()) == [])
    finally:
        os.chdir(here)


def test_no_error_repeats_what_may_be_a_password(tally: Tally) -> None:
    for entry in (
        "x --index-url https://u:w0rd@h/ !",
        "git+https://u:w0rd@h/a !",
        "-r https://u:w0rd@h/a",
        "u:p@w0rd://",
    ):
        with pytest.raises(RuntimeSpecError) as error:
            runtime.parse_text(of(python_packages=[entry]))
        told = f"{error.value} {error.value.hint} {error.value.detail}"
        tally(f"the password in {entry!r}", refused="w0rd@" not in told)


@pytest.mark.process
def test_apt_neither_removes_nor_guesses(tally: Tally) -> None:
    """What the pattern above lets pass, asked of apt itself, which only says what it would do."""
    if shutil.which("apt-get") is None or not list(Path("/var/lib/apt/lists").glob("*Packages*")):
        pytest.skip("no apt with lists here")
    for name in ("libxcb-x.+", "cow.ay", "lib.+", "a.+"):
        assert runtime.parse_text(of(system_packages=[name])).system_packages == (name,)
        from puna.packaging.environment import INSTALL

        done = subprocess.run([*INSTALL, "--simulate", "--", name], capture_output=True, text=True, check=False)
        tally(f"apt-get install {name}", refused=done.returncode != 0 and "Inst " not in done.stdout)


SPY = "{ env; tr '\\0' '\\n' < /proc/self/environ; cat /proc/self/cmdline ~/.netrc ~/.ssh/* ~/.git-credentials; }"


@pytest.mark.process
def test_a_run_line_sees_no_secret_of_the_machine(
    home: Home, tally: Tally, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = tmp_path / "user"
    for name in (".netrc", ".git-credentials", ".ssh/id_ed25519", ".huggingface/token"):
        (user / name).parent.mkdir(parents=True, exist_ok=True)
        (user / name).write_text("s3cret-of-a-file")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(user))
    names = (
        "HF_TOKEN PUNA_KEY PUNA_HOME AWS_SECRET_ACCESS_KEY GITHUB_TOKEN SSH_AUTH_SOCK PUNA_DATABASE_URL WANDB_API_KEY "
    )
    names += "PYTHONPATH LD_PRELOAD PYTHONSTARTUP BASH_ENV ENV GIT_ASKPASS UV_PUBLISH_TOKEN OPENAI_API_KEY"
    for name in names.split():
        if name not in ("LD_PRELOAD", "PYTHONPATH"):
            monkeypatch.setenv(name, f"s3cret-of-{name}")
    said: list[str] = []
    environment.build(runtime.parse_text(of(run=[f"{SPY} 2>&1 | grep -a s3cret; true"])), home, said.append)
    told = "\n".join(said)
    for name in names.split():
        tally(f"{name} in a run line", refused=f"s3cret-of-{name}" not in told)
    tally("files of the user's home", refused="s3cret-of-a-file" not in told)


@pytest.mark.process
def test_a_run_line_with_a_password_is_in_no_log_and_no_error(home: Home, tally: Tally) -> None:
    said: list[str] = []
    spec = runtime.parse_text(of(run=["true https://u:w0rd@h/ t0ken", "exit 3 # w0rd"]))
    with pytest.raises(BuildError) as error:
        environment.build(spec, home, said.append)
    told = "\n".join([*said, str(error.value), error.value.hint, error.value.detail])
    tally("the line itself", refused="w0rd" not in told and "t0ken" not in told)
    deadline = time.monotonic() + 30
    while list(home.environments.glob(".gone-*")) and time.monotonic() < deadline:  # it is removed by and by
        time.sleep(0.1)
    left = [path for path in home.environments.rglob("*") if path.is_file() and b"w0rd" in path.read_bytes()]
    tally("what a failed build leaves", refused=left == [])
