#!/usr/bin/env bash
# Five optimizers against an attacker on silhouettes, five seeds each, two runs side by side with a
# core each; then the tables and the pictures.
#
#   bash recipes/adversarial_training/launch/demo.sh    (or `make demo-adversarial`, which installs first)
#
# Nothing is downloaded. SEEDS, ARMS, NORMS (linf, l2) and RUNS (the folder) may be set in the
# environment; a run that RUNS has already is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

RUNS=${RUNS:-runs/adversarial_demo}
ARMS=${ARMS:-"adam_l2 adamw_torch adamp sgd sgdp"}
NORMS=${NORMS:-linf}
read -ra seeds <<< "${SEEDS:-1 2 3 4 5}"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
mkdir -p "$RUNS"

train() { # NUMBER SEEDS
  [[ $# -gt 1 ]] || return 0
  local log=$RUNS/log-$1.txt
  shift
  python -m recipes.adversarial_training.demo "$RUNS" --norms $NORMS --arms $ARMS --seeds "$@" \
    2> "$log" || { tail -n 20 "$log"; return 1; }
}

odd=() even=()
for place in "${!seeds[@]}"; do
  if ((place % 2)); then even+=("${seeds[place]}"); else odd+=("${seeds[place]}"); fi
done
train 1 "${odd[@]}" &
first=$!
train 2 "${even[@]}" &
second=$!
wait "$first"
wait "$second"

python -m recipes.adversarial_training.compare "$RUNS"
