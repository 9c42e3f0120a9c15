#!/usr/bin/env bash
# One threat at full size on every GPU of the machine (one process each; Accelerate finds them):
#
#   bash recipes/adversarial_training/launch/gpu.sh THREAT [CONFIG.yaml ...] [OPTIONS]
#
# THREAT is linf_4, l2_80 (the paper's), linf_8 or l2_128. Configurations and OPTIONS overrule
# configs/full.yaml; --output_dir is runs/adversarial-THREAT where none is given. The batch of 128 is
# divided among the GPUs.
set -euo pipefail
ADVERSARIAL=recipes/adversarial_training
threat=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
configs=()
while [[ ${1-} == *.yaml ]]; do
  configs+=("$1")
  shift
done
exec accelerate-launch --num_processes "$processes" --num_machines 1 \
  $([[ $processes -gt 1 ]] && echo --multi_gpu) --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.adversarial_training.train \
  $ADVERSARIAL/configs/full.yaml "$ADVERSARIAL/configs/$threat.yaml" "${configs[@]}" \
  --output_dir "runs/adversarial-$threat" \
  --per_device_train_batch_size $((128 / processes)) "$@"
