#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment of their own (.venv, made at the first run).
# Needs Python 3.11 or newer, and at the first run the network.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '== %s\n' "$*"; }

# Only a finished environment has pip; one that an interrupted run left behind is made anew.
if [ ! -x .venv/bin/pip ]; then
  python=
  for name in python3.13 python3.12 python3.11 python3; do
    # Run, not looked up: pyenv puts names on the path that start nothing, and Debian's Python may lack ensurepip.
    if "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$name
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "$0: needs Python 3.11 or newer, with venv and ensurepip" >&2
    exit 1
  fi
  step ".venv: $("$python" --version)"
  "$python" -m venv --clear .venv
fi

step "pip install -e '.[test]', versions from constraints.txt"
.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'

step "ruff check"
.venv/bin/ruff check

step "ruff format --check"
.venv/bin/ruff format --check

step "mypy"
.venv/bin/mypy

step "pytest"
.venv/bin/pytest -q "$@"

step "all passed"
