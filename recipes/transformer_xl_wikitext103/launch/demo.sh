#!/usr/bin/env bash
# A small Transformer-XL on real English text: AdamW and AdamP, plain and weight-normalised, three
# seeds each, in two processes on the CPU; then the tables and the picture.
#
#   bash recipes/transformer_xl_wikitext103/launch/demo.sh    (or `make demo-transformer-xl`)
#
# Nothing is downloaded. SEEDS, STEPS, LEARNING_RATE, PROCESSES, PORT and RUNS (the folder) may be
# set in the environment; a run that is already finished in RUNS is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

TXL=recipes/transformer_xl_wikitext103
RUNS=${RUNS:-runs/transformer_xl_demo}
SEEDS=${SEEDS:-"1 2 3"}
PROCESSES=${PROCESSES:-2}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# `accelerate launch --cpu` starts one process whatever --num_processes says (Accelerate 1.15);
# --multi_gpu starts them all, and this variable keeps them on the CPU, with gloo between them.
export ACCELERATE_USE_CPU=true

python -m recipes.transformer_xl_wikitext103.demo_text "$RUNS/text"

for seed in $SEEDS; do
  for model in plain weight_norm; do
    for optimizer in adamw_torch adamp; do
      output=$RUNS/$model-$optimizer-$seed
      if [[ -e $output/test_results.json ]]; then
        printf '\n== %s is finished\n' "$output"
        continue
      fi
      printf '\n== %s, %s, seed %s\n' "$model" "$optimizer" "$seed"
      accelerate-launch --multi_gpu --num_processes "$PROCESSES" --num_machines 1 \
        --mixed_precision no --dynamo_backend no --main_process_port "${PORT:-29611}" \
        -m hf_adamp -m recipes.transformer_xl_wikitext103.train \
        $TXL/configs/demo.yaml \
        $([[ $model == weight_norm ]] && echo $TXL/configs/weight_norm.yaml) \
        --data "$RUNS/text" \
        --cache_dir "$RUNS/cache" \
        --output_dir "$output" \
        --optim "$optimizer" \
        --seed "$seed" \
        ${STEPS:+--max_steps "$STEPS"} \
        ${LEARNING_RATE:+--learning_rate "$LEARNING_RATE"}
    done
  done
done

python -m recipes.transformer_xl_wikitext103.compare "$RUNS"
