#!/usr/bin/env bash
# One task at full size on every GPU of the machine (one process each; Accelerate finds them):
#
#   bash recipes/rebias/launch/gpu.sh biased_mnist --rho 0.999 [OPTIONS]
#   bash recipes/rebias/launch/gpu.sh imagenet9 --data_dir IMAGENET [OPTIONS]
#
# OPTIONS are any of train.py, such as --optim adam_l2 (the paper's Adam) or --resume true. Without
# --optim it is AdamP. The published runs have one process: HSIC is that of a process's own batch.
set -euo pipefail
task=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
accelerate-launch --num_processes "$processes" --num_machines 1 \
  $([[ $processes -gt 1 ]] && echo --multi_gpu) --mixed_precision no --dynamo_backend no \
  -m recipes.rebias.train "recipes/rebias/configs/$task.yaml" \
  --output_dir "runs/rebias/$task" "$@"
