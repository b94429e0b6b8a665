# Sourced by the other scripts: the virtual environment `$environment` (.venv if not said otherwise), made at the first
# run by the first of `pythons` that works, and `step`, which says what is being done. Needs Python 3.11 or newer, and
# at the first run the network.
set -euo pipefail

environment=${environment:-.venv}
# Where it is set, each of hundreds of processes would spend 3 s on compiling what it imports again.
unset PYTHONDONTWRITEBYTECODE
[ -n "${pythons-}" ] || pythons=(python3.13 python3.12 python3.11 python3)

step() { printf '\n== %4ds  %s\n' "$SECONDS" "$*"; }

# Only a finished environment has pip; one that an interrupted run left behind is made again.
if [ ! -x "$environment/bin/pip" ]; then
  python=
  for name in "${pythons[@]}"; do
    # Run, not looked up: pyenv puts names on the path that start nothing, and Debian's Python may lack ensurepip.
    if "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      python=$name
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "$0: needs Python 3.11 or newer, with venv and ensurepip" >&2
    exit 1
  fi
  step "$environment: $("$python" --version)"
  "$python" -m venv --clear "$environment"
fi
