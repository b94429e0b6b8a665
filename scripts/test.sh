#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment of their own (.venv, made at the first run).
# Needs Python 3.11 or newer, and at the first run the network. The page of `purinet serve` is tested in a browser,
# Chromium or Chrome; Debian's is installed where there is none and that is allowed, otherwise those tests are skipped.
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

if [ -z "$(type -P chromium || type -P chromium-browser || type -P google-chrome || type -P chrome)" ]; then
  if [ "$(id -u)" = 0 ] && type -P apt-get > /dev/null; then
    step "apt-get install chromium, in which the page is tested"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium; } \
      > /dev/null || echo "chromium cannot be installed: the tests of the page will be skipped"
  else
    step "no chromium: the tests of the page will be skipped"
  fi
fi

step "pytest, in two processes"
# Most of the time goes into compiling, which takes one core.
.venv/bin/pytest -q -rs -n 2 --dist worksteal "$@"

step "all passed"
