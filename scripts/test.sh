#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment of their own (.venv, made at the first run).
#   bash scripts/test.sh [--newest|--lowest] [PYTEST-OPTION...]
# --newest: the tests alone, with the newest release of everything, in .venv-newest. --lowest: with the oldest releases
# that pyproject.toml permits, in .venv-lowest. Otherwise the versions are those of constraints.txt.
# Needs Python 3.11 or newer, and at the first run the network.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=pinned
case ${1:-} in --newest | --lowest)
  versions=${1#--}
  environment=.venv-$versions
  shift
  ;;
esac
. scripts/environment.sh

case $versions in
pinned)
  step "pip install -e '.[test]', versions from constraints.txt"
  "$environment/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'

  step "ruff check"
  "$environment/bin/ruff" check

  step "ruff format --check"
  "$environment/bin/ruff" format --check

  step "mypy"
  "$environment/bin/mypy"
  ;;
newest)
  step "pip install --upgrade -e '.[test]'"
  "$environment/bin/pip" install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[test]'
  ;;
lowest)
  step "uv pip install --resolution lowest-direct -e '.[test]'"
  # pip cannot look for the oldest releases.
  "$environment/bin/pip" install --quiet --disable-pip-version-check uv
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --resolution lowest-direct -e '.[test]'
  ;;
esac

step "pytest, in two processes"
# Most of the time goes into compiling, which takes one core.
"$environment/bin/pytest" -q -n 2 --dist worksteal "$@"

step "all passed"
