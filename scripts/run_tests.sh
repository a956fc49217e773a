#!/usr/bin/env bash
# Sets itself up, then checks style, types and tests, a file of tests on each processor. Options are handed to pytest;
# with -n 0 it runs one test after another in its own process, as a debugger needs.
set -euo pipefail

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root" affetto pytest xdist hypothesis ruff mypy
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile "$@"
