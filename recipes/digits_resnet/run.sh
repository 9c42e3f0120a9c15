#!/usr/bin/env bash
# Train the same ResNet with AdamP and with AdamW, three seeds each, then compare them.
#
#   bash recipes/digits_resnet/run.sh        (or `make demo`, which installs first)
#
# Only --optim differs between the two. README.md says how the learning rate was chosen, and what to
# expect. SEEDS, EPOCHS, LEARNING_RATE and RUNS (the folder) may be set in the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# PASSIVE: threads that wait by spinning make a shared machine several times slower.
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
RUNS=${RUNS:-runs/digits_resnet}
SEEDS=${SEEDS:-"1 2 3"}
EPOCHS=${EPOCHS:-10}
LEARNING_RATE=${LEARNING_RATE:-3e-3}

for seed in $SEEDS; do
  for optimizer in adamp adamw_torch; do
    printf '\n== %s, seed %s\n' "$optimizer" "$seed"
    accelerate-launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
      --num_cpu_threads_per_process 2 \
      -m hf_adamp recipes/digits_resnet/train.py \
      --optim "$optimizer" \
      --seed "$seed" \
      --output_dir "$RUNS/$optimizer-$seed" \
      --num_train_epochs "$EPOCHS" \
      --per_device_train_batch_size 64 \
      --per_device_eval_batch_size 180 \
      --learning_rate "$LEARNING_RATE" \
      --weight_decay 0.01 \
      --lr_scheduler_type linear \
      --logging_steps 10 \
      --eval_strategy epoch \
      --save_strategy no \
      --dataloader_pin_memory false \
      --report_to none
  done
done

python -m recipes.digits_resnet.compare "$RUNS"
