#!/usr/bin/env bash
# The base model on the eight GPUs of one machine, in bfloat16 mixed precision.
#
#   bash recipes/transformer_xl_wikitext103/launch/8gpus.sh [CONFIG.yaml ...] --output_dir DIR [...]
#
# Configurations and options given here overrule configs/base.yaml and its 64 columns, which have
# to be a multiple of the number of GPUs: each GPU reads 8 of them.
set -euo pipefail
TXL=recipes/transformer_xl_wikitext103

exec accelerate-launch --multi_gpu --num_processes 8 --num_machines 1 \
  --mixed_precision no --dynamo_backend no --main_process_port "${PORT:-29500}" \
  -m hf_adamp -m recipes.transformer_xl_wikitext103.train $TXL/configs/base.yaml \
  $TXL/configs/8gpus.yaml "$@" --bf16 true
