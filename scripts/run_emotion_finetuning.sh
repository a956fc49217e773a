#!/usr/bin/env bash
# Sets itself up, then prepares clips, trains, evaluates and reports: one emotion, or all of the configuration.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: run_emotion_finetuning.sh [options]

  --emotion NAME      train this emotion (default: all in the configuration, each by itself); repeat for several.
                      all: together in one run; base: the expressive base, for expressive_base: true
  --config FILE       settings (default: configs/emotion_specific_finetuning.yaml)
  --base ID_OR_PATH   base model: miniature, a folder, or a hub id such as sesame/csm-1b
  --data PATH         a manifest (.jsonl) or a folder of clips; repeat for several
  --general SOURCE    general speech: data (the data's clips without emotion; the default) or self (spoken by the base)
  --output DIR        where emotion_models/ and evaluation_results/ go (default: here)
  --judge KIND=NAME   judge of emotion, words, quality, voice, dimensions or embedding (a hub id, a folder, or none);
                      repeat for several
  --gpu N             use this GPU, counted from 0
  --jobs N            emotions at a time (default: as many as CPUs and memory allow; one on a GPU)
  --skip-datasets     do not read or check the data again: use what was prepared before
  --skip-bad-clips    leave out bad clips instead of stopping
  --resume            continue an interrupted run
  --help              show this text

Exit status 3: everything is done and written, but an emotion exceeds the forgetting_budget of the settings; 4: the same,
but some files could not be scored.

The current environment is used if affetto can be imported in it, or if requirements-expressivity-finetuning.txt is
installed; otherwise .venv is made in this repository.
EOF
}

wrong() {
    usage >&2
    echo "$1" >&2
    exit 2
}

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
config="$root/configs/emotion_specific_finetuning.yaml"
options=()
gpu=""
while (($#)); do
    case "$1" in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
        --emotion | --base | --data | --general | --output | --config | --judge | --gpu | --jobs) [[ -n "${2:-}" ]] || wrong "$1 needs a value" ;;
    esac
    case "$1" in
        --emotion | --base | --data | --general | --output | --judge | --jobs) options+=("$1" "$2") && shift 2 ;;
        --config) config="$2" && shift 2 ;;
        --gpu)
            [[ "$2" =~ ^[0-9]+$ ]] || wrong "--gpu $2: give the number of one GPU, 0 for the first"
            gpu="$2" && shift 2
            ;;
        --skip-datasets | --skip-bad-clips | --resume) options+=("$1") && shift ;;
        --help | -h) usage && exit 0 ;;
        *) wrong "unknown option $1" ;;
    esac
done

# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root" affetto
[[ -z "$gpu" ]] || use_gpu "$gpu"
# Bash before 4.4 takes an empty array for an unset variable.
exec "$python" -m affetto run --config "$config" ${options[@]+"${options[@]}"}
