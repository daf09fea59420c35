# Sourced by setup and lowest: a Python for Puna, uv, and where packages come from on this machine.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '%s: %s\n' "$(basename "$0")" "$*"; }

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
  "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$candidate && break
done
if [ -z "$python" ]; then
  say "no Python 3.11 or later on PATH; install one, or run: make PYTHON=/path/to/python3.11 setup" >&2
  exit 1
fi

if ! command -v uv >/dev/null 2>&1; then
  [ -x .venv-uv/bin/uv ] || {
    say "uv is not installed: taking it from the package registry with pip"
    "$python" -m venv .venv-uv && .venv-uv/bin/python -m pip install -qq "$(grep '^uv==' constraints.txt)"
  }
  PATH="$PWD/.venv-uv/bin:$PATH"
fi

# uv does not read pip's settings: those that decide where packages come from are handed on.
setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
links=${PIP_FIND_LINKS:-$(setting find-links)}
[ -n "${UV_FIND_LINKS:-}" ] || [ -z "$links" ] || export UV_FIND_LINKS="${links//[[:space:]]/,}"
cert=${PIP_CERT:-$(setting cert)}
[ -n "${SSL_CERT_FILE:-}" ] || [ -z "$cert" ] || export SSL_CERT_FILE=$cert
index=${PIP_INDEX_URL:-$(setting index-url)}
[ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || [ -z "$index" ] || export UV_DEFAULT_INDEX=$index

torch=$(grep '^torch==' constraints.txt)

# Without an NVIDIA GPU the CPU build of torch is taken, never the several GB of CUDA packages.
install_torch_for_cpu() { # VENV
  local install=(uv pip install --python "$1/bin/python" --constraint constraints.txt)
  command -v nvidia-smi >/dev/null 2>&1 && return
  "${install[@]}" --dry-run "$torch" 2>&1 | grep -q '^ + nvidia-' || return 0
  say "no GPU here, and the configured package sources offer only the CUDA build of torch: asking for the CPU backend"
  "${install[@]}" --quiet --torch-backend cpu "$torch" || {
    say "no CPU build of $torch can be had; put its wheel in a folder and run: PIP_FIND_LINKS=/that/folder make setup" >&2
    exit 1
  }
}
