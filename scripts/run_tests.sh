#!/usr/bin/env bash
# Sets itself up, then checks style, types and tests. Options are handed to pytest.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root" affetto pytest hypothesis ruff mypy
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest "$@"
