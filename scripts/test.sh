#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment of their own (.venv, made at the first run).
#   bash scripts/test.sh [--newest|--lowest] [PYTEST-OPTION...]
# --newest: the tests alone, with the newest release of everything on the newest Python that is found, also below
# pyenv's versions/, in .venv-newest (constraints-newest.txt records the releases). --lowest: with the oldest releases
# that pyproject.toml permits, in .venv-lowest. Otherwise the versions are those of constraints.txt.
# Needs Python 3.11 or newer, and at the first run the network. The page of `purinet serve` is tested in a browser,
# Chromium or Chrome; Debian's is installed where there is none and that is allowed, otherwise those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=pinned failed= mypy=
case ${1:-} in --newest | --lowest)
  versions=${1#--}
  environment=.venv-$versions
  shift
  ;;
esac
if [ "$versions" = newest ]; then
  pythons=()
  for version in 3.14 3.13 3.12 3.11; do
    pythons+=("python$version" "${PYENV_ROOT:-${HOME-}/.pyenv}/versions/$version".*/bin/python3)
  done
  pythons+=(python3)
fi
. scripts/environment.sh

case $versions in
pinned)
  step "pip install -e '.[test]', versions from constraints.txt"
  # Python compiles what it imports; that is a part of what is installed.
  "$environment/bin/pip" install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test]'

  step "ruff check"
  "$environment/bin/ruff" check

  step "ruff format --check"
  "$environment/bin/ruff" format --check

  step "mypy, in the background"
  mypy_says=$(mktemp)
  "$environment/bin/mypy" > "$mypy_says" 2>&1 &
  mypy=$!
  trap 'kill "$mypy" 2> /dev/null || true; rm -f "$mypy_says"' EXIT
  ;;
newest)
  "$environment/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
    || step "no Python newer than 3.11 was found: the newest releases are tested on 3.11"
  step "pip install --upgrade -e '.[test]'"
  "$environment/bin/pip" install --quiet --no-compile --disable-pip-version-check --upgrade --upgrade-strategy eager \
    -e '.[test]'
  ;;
lowest)
  step "uv pip install --resolution lowest-direct -e '.[test]'"
  # pip cannot look for the oldest releases.
  "$environment/bin/pip" install --quiet --disable-pip-version-check uv
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --resolution lowest-direct -e '.[test]'
  ;;
esac

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
# Most of the time goes into compiling, which takes one core. A process that crashes is not started again: pytest-xdist
# deals its file out twice and then waits for ever.
"$environment/bin/pytest" -q -rs -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@" || failed=pytest

if [ -n "$mypy" ]; then
  step "mypy"
  wait "$mypy" || failed="$failed mypy"
  cat "$mypy_says"
fi
[ -z "$failed" ] || { step "failed: $failed"; exit 1; }

step "all passed"
