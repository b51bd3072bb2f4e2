#!/usr/bin/env bash
# Every method of a profile, then the table. Safe to repeat: finished rows are not answered again.
#   bash eval_all.sh [--profile NAME|FILE.yaml] [--results DIR] [--only NAME,NAME] [--limit ROWS_PER_TASK]
#                    [--sweep NAME=VALUE,VALUE]...   k, scorer, temperature or seed; several make a cross product
#                    [--answer-anew | --keep-answers]   what becomes of answers that other code made
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/lora-retriever" run --table "$@"
