#!/usr/bin/env bash
# Train on one machine's GPUs:
#
#   bash recipes/image_classification/launch/gpus.sh GPUS "MODEL [OVERLAY ...]" --data FOLDER [--OPTION ...]
#
# MODEL and OVERLAY are names in configs/; later ones and options overrule earlier ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
GPUS=${1:?the number of GPUs}
NAMES=${2:?a configuration, such as resnet50}
shift 2
CONFIGS=(recipes/image_classification/configs/imagenet.yaml)
for name in $NAMES; do CONFIGS+=("recipes/image_classification/configs/$name.yaml"); done
MULTI=()
[ "$GPUS" -gt 1 ] && MULTI=(--multi_gpu)
# The Trainer's own --bf16 decides on precision.
exec accelerate launch --num_processes "$GPUS" --num_machines 1 "${MULTI[@]}" \
  --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.image_classification.train "${CONFIGS[@]}" \
  --output_dir "runs/imagenet/${NAMES// /-}" "$@"
