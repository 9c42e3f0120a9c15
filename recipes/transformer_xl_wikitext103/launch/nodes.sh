#!/usr/bin/env bash
# The base model on several machines of eight GPUs each, in bfloat16 mixed precision.
#
# On every machine, with its own MACHINE_RANK (0 on the first, whose address is MAIN_ADDRESS):
#
#   MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=10.0.0.1 \
#     bash recipes/transformer_xl_wikitext103/launch/nodes.sh [CONFIG.yaml ...] --output_dir DIR [...]
#
# DIR is on a file system that all machines share, since each process saves its own memory there; the
# encoded words (--cache_dir) are built once a machine and may be local. The columns have to be a
# multiple of the number of GPUs. GPUS and PORT may be set.
set -euo pipefail
TXL=recipes/transformer_xl_wikitext103
: "${MACHINES:?set MACHINES to the number of machines}"
: "${MACHINE_RANK:?set MACHINE_RANK to the place of this machine, from 0}"
: "${MAIN_ADDRESS:?set MAIN_ADDRESS to the address of machine 0}"

exec accelerate-launch --multi_gpu --num_machines "$MACHINES" --machine_rank "$MACHINE_RANK" \
  --num_processes "$((MACHINES * ${GPUS:-8}))" \
  --main_process_ip "$MAIN_ADDRESS" --main_process_port "${PORT:-29500}" \
  --mixed_precision no --dynamo_backend no \
  -m hf_adamp -m recipes.transformer_xl_wikitext103.train $TXL/configs/base.yaml \
  $TXL/configs/8gpus.yaml "$@" --bf16 true
