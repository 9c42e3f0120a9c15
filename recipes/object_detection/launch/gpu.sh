#!/usr/bin/env bash
# One detector at full size on every GPU of the machine (one process each; Accelerate finds them):
#
#   bash recipes/object_detection/launch/gpu.sh centernet --data_dir COCO [OPTIONS]
#
# The first word is a configuration: centernet, ssd or hub. OPTIONS are any of train.py, such as
# --optim adamw_torch, --source hub, --backbone microsoft/resnet-18. Without --optim it is AdamP.
set -euo pipefail
config=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
accelerate-launch --num_processes "$processes" --num_machines 1 \
  $([[ $processes -gt 1 ]] && echo --multi_gpu) --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.object_detection.train "recipes/object_detection/configs/$config.yaml" \
  --output_dir "runs/detection/$config" --optim adamp "$@"
