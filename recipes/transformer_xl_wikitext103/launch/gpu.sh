#!/usr/bin/env bash
# The base model on one GPU, in bfloat16 mixed precision.
#
#   bash recipes/transformer_xl_wikitext103/launch/gpu.sh [CONFIG.yaml ...] --output_dir DIR [...]
#
# Configurations and options given here overrule configs/base.yaml. Where its 60 columns do not fit,
# give fewer: --columns 30.
set -euo pipefail
TXL=recipes/transformer_xl_wikitext103

exec accelerate-launch --num_processes 1 --num_machines 1 \
  --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.transformer_xl_wikitext103.train $TXL/configs/base.yaml \
  "$@" --bf16 true
