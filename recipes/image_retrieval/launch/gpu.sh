#!/usr/bin/env bash
# One data set at full size on every GPU of the machine (one process each; Accelerate finds them):
#
#   bash recipes/image_retrieval/launch/gpu.sh cub --data_dir CUB_200_2011 [OPTIONS]
#
# The first word is cub, cars, in_shop or sop. OPTIONS are further configurations, such as
# recipes/image_retrieval/configs/triplet.yaml, then any options of train.py, such as
# --optim adamw_torch or --freeze_batch_norms false. Without --optim it is AdamP.
# The published runs have one process: a loss is that of a process's own batch.
set -euo pipefail
data=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
configs=("recipes/image_retrieval/configs/base.yaml" "recipes/image_retrieval/configs/$data.yaml")
while [[ ${1:-} == *.yaml ]]; do
  configs+=("$1")
  shift
done
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
accelerate-launch --num_processes "$processes" --num_machines 1 \
  $([[ $processes -gt 1 ]] && echo --multi_gpu) --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.image_retrieval.train "${configs[@]}" \
  --output_dir "runs/retrieval/$data" --optim adamp "$@"
