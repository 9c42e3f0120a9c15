#!/usr/bin/env bash
# Train on several machines: run this on each, with MACHINE_RANK from 0 on.
#
#   MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=10.0.0.1 GPUS=8 \
#     bash recipes/image_classification/launch/nodes.sh "resnet50 large_batch_16k" --data FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
: "${MACHINES:?}" "${MACHINE_RANK:?}" "${MAIN_ADDRESS:?}"
GPUS=${GPUS:-8}
NAMES=${1:?a configuration, such as resnet50}
shift
CONFIGS=(recipes/image_classification/configs/imagenet.yaml)
for name in $NAMES; do CONFIGS+=("recipes/image_classification/configs/$name.yaml"); done
exec accelerate launch --num_machines "$MACHINES" --machine_rank "$MACHINE_RANK" \
  --main_process_ip "$MAIN_ADDRESS" --main_process_port "${MAIN_PORT:-29500}" \
  --num_processes $((MACHINES * GPUS)) --multi_gpu --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.image_classification.train "${CONFIGS[@]}" \
  --output_dir "runs/imagenet/${NAMES// /-}" "$@"
