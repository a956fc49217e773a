# Sourced by the scripts: finds a Python in which everything that is needed can be imported, or makes one.

# use_environment ROOT MODULE…  sets $python.
use_environment() {
    local root="$1" && shift
    local candidate
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3 "$root/.venv/bin/python"; do
        if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null && imports "$candidate" "$@"; then
            python="$(command -v "$candidate")"
            return
        fi
    done
    if [[ "$*" == affetto ]]; then
        for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3; do
            if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null && has_requirements "$candidate" "$root"; then
                python="$(command -v "$candidate")"
                export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
                return
            fi
        done
    fi
    make_environment "$root" "$@"
}

# has_requirements PYTHON ROOT  Whether what affetto runs on is installed, as after pip install -r requirements….txt.
has_requirements() {
    "$1" -P - "$2/requirements-expressivity-finetuning.txt" 2>/dev/null <<'EOF'
import sys
from importlib.metadata import version
from packaging.requirements import Requirement

with open(sys.argv[1], encoding="utf-8") as lines:
    needed = [Requirement(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
sys.exit(not all(one.specifier.contains(version(one.name)) for one in needed))
EOF
}

# imports PYTHON MODULE…  The folder that we happen to be in doesn't count (-P, which Python has since 3.11).
imports() {
    local candidate="$1" && shift
    "$candidate" -P - "$@" 2>/dev/null <<'EOF'
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(module) is None for module in sys.argv[1:]))
EOF
}

# use_gpu N  lets programs see that GPU alone; fails where $python's torch finds none there, for it would take the CPU.
use_gpu() {
    local count='import torch; print(torch.cuda.device_count())' found
    export CUDA_VISIBLE_DEVICES="$1"
    if [[ "$("$python" -P -c "$count")" == 0 ]]; then
        found="$(env -u CUDA_VISIBLE_DEVICES "$python" -P -c "$count")"
        echo "--gpu $1: torch finds no GPU of that number, only $found, counted from 0; leave --gpu out to go on without" >&2
        return 1
    fi
}

make_environment() {
    local root="$1" && shift
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "affetto needs Python 3.11 or newer; python3 is $(python3 --version 2>&1 || echo missing)" >&2
        return 1
    fi
    echo "setting up $root/.venv (once)" >&2
    python3 -m venv "$root/.venv"
    python="$root/.venv/bin/python"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-expressivity-finetuning.txt"
    if [[ " $* " == *" pytest "* ]]; then
        "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-test.txt"
    fi
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$root"
}
