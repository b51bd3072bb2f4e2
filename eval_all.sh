#!/usr/bin/env bash
# Every configuration of a profile, then the table. Safe to repeat: finished rows are not done again.
#   bash eval_all.sh [--profile NAME|FILE.yaml] [--results DIR] [--only NAME,NAME] [--limit ROWS_PER_TASK]
#                    [--sweep NAME=VALUE,VALUE]...   k, scorer, temperature or seed; several make a cross product
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="${PYTHON:-python3}"
[ -z "${PYTHON:-}" ] && [ -x "$here/.venv/bin/python" ] && python="$here/.venv/bin/python"
exec "$python" -m lora_retriever run --table "$@"
