#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment of their own (.venv, made at the first run).
# Needs Python 3.11 or newer, and at the first run the network.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh

step "pip install -e '.[test]', versions from constraints.txt"
.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'

step "ruff check"
.venv/bin/ruff check

step "ruff format --check"
.venv/bin/ruff format --check

step "mypy"
.venv/bin/mypy

step "pytest, in two processes"
# Most of the time goes into compiling, which takes one core.
.venv/bin/pytest -q -n 2 --dist worksteal "$@"

step "all passed"
