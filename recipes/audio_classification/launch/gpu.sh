#!/usr/bin/env bash
# One task at full size on every GPU of the machine (one process each; Accelerate finds them):
#
#   bash recipes/audio_classification/launch/gpu.sh keyword_spotting speech_commands FOLDER [OPTIONS]
#
# OPTIONS are any of train.py, such as --optim adamw_torch, --adam_then_sgd true (the published
# schedule), --model facebook/wav2vec2-base, --bf16 true. Without --optim it is AdamP.
set -euo pipefail
task=$1 source=$2 data_dir=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data_dir=$([[ -e $data_dir ]] && realpath "$data_dir" || echo "$data_dir") # or an id of the Hub
cd "$here/../.."
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
accelerate-launch --num_processes "$processes" --num_machines 1 \
  $([[ $processes -gt 1 ]] && echo --multi_gpu) --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.audio_classification.train \
  "$here/configs/full.yaml" "$here/configs/$task.yaml" \
  --source "$source" --data_dir "$data_dir" \
  --output_dir "runs/$task" --optim adamp "$@"
