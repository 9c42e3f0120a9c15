#!/usr/bin/env bash
# The base model in one process on the CPU, with all its cores; to try things, not to train it.
#
#   bash recipes/transformer_xl_wikitext103/launch/cpu.sh [CONFIG.yaml ...] --output_dir DIR [...]
#
# Configurations and options given here overrule configs/base.yaml.
set -euo pipefail
TXL=recipes/transformer_xl_wikitext103

exec accelerate-launch --cpu --num_processes 1 --num_machines 1 \
  --num_cpu_threads_per_process "${THREADS:-$(nproc)}" \
  --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.transformer_xl_wikitext103.train $TXL/configs/base.yaml \
  "$@" --use_cpu true --dataloader_pin_memory false
