#!/usr/bin/env bash
# The instruction benchmark from its two sources to the table. Safe to repeat: what is there is not made again.
#   bash scripts/instructions.sh [instructions | instructions-llama2-7b] [arguments of eval_all.sh]
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${1:-instructions}"
shift || true
data=data/instructions
python=".venv/bin/python"
[ -x "$python" ] || python=python3

case "$profile" in
    instructions)
        base=google/gemma-3-270m adapters=$data/adapters-gemma-270m
        recipe=(--learning-rate 1e-3 --batch-size 8 --epochs 1 --dtype float32) ;;
    instructions-llama2-7b) # not tried yet; the rate is the one of the paper's own adapters
        base=meta-llama/Llama-2-7b-hf adapters=$data/adapters-llama2-7b
        recipe=(--learning-rate 3e-4 --batch-size 8 --epochs 2 --dtype bfloat16) ;;
    *) echo "instructions.sh: unknown profile $profile (known: instructions, instructions-llama2-7b)" >&2; exit 2 ;;
esac

if [ ! -e "$data/card.json" ]; then
    mkdir -p "$data/sources"
    for source in orhonovich/instruction-induction ericwtodd/function_vectors; do
        folder="$data/sources/${source##*/}"
        [ -d "$folder" ] || git clone --depth 1 "https://github.com/$source" "$folder"
    done
    "$python" scripts/build_instructions.py --induction "$data/sources/instruction-induction" \
        --vectors "$data/sources/function_vectors" --out "$data"
fi
"$python" scripts/train_loras.py --base "$base" --pool "$data/train.json" --out "$adapters" --rank 8 --alpha 16 \
    --dropout 0 --max-tokens 256 --max-answer-tokens 32 --template $'{inputs}\nAnswer:' "${recipe[@]}"
exec bash eval_all.sh --profile "$profile" "$@"
