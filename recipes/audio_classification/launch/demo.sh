#!/usr/bin/env bash
# A narrow Harmonic CNN on three tasks with small real audio: AdamW and AdamP, three seeds each, side
# by side with a core each; then the tables and the pictures.
#
#   bash recipes/audio_classification/launch/demo.sh    (or `make demo-audio`, which installs first)
#
# Nothing is downloaded. SEEDS, TASKS, OPTIMIZERS, STEPS, LEARNING_RATE and RUNS (the folder) may be
# set in the environment; a run that is already finished in RUNS is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

CONFIGS=recipes/audio_classification/configs
RUNS=${RUNS:-runs/audio_demo}
SEEDS=${SEEDS:-"1 2 3"}
TASKS=${TASKS:-"keyword_spotting sound_event_tagging music_tagging"}
OPTIMIZERS=${OPTIMIZERS:-"adamw_torch adamp"}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 HF_DATASETS_CACHE=$RUNS/cache

train() { # TASK OPTIMIZER SEED
  local output=$RUNS/$1-$2-$3 optimizer=(--optim "$2")
  if [[ -e $output/test_results.json ]]; then
    printf '== %s is finished\n' "$output"
    return
  fi
  [[ $2 == adam_then_sgd ]] && optimizer=(--adam_then_sgd true)
  mkdir -p "$output"
  printf '== %s\n' "$output"
  accelerate-launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process 1 \
    -m hf_adamp -m recipes.audio_classification.train \
    $CONFIGS/demo.yaml "$CONFIGS/demo_$1.yaml" \
    --data_dir "$RUNS/data/$1" \
    --output_dir "$output" \
    "${optimizer[@]}" \
    --seed "$3" \
    ${STEPS:+--max_steps "$STEPS"} \
    ${LEARNING_RATE:+--learning_rate "$LEARNING_RATE"} \
    > "$output/log.txt" 2>&1 || { tail -n 20 "$output/log.txt"; return 1; }
}

python -m recipes.audio_classification.demo_data "$RUNS/data"

for task in $TASKS; do
  for seed in $SEEDS; do
    started=()
    for optimizer in $OPTIMIZERS; do
      train "$task" "$optimizer" "$seed" &
      started+=($!)
    done
    for run in "${started[@]}"; do wait "$run"; done
  done
done

python -m recipes.audio_classification.compare "$RUNS"
