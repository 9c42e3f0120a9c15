#!/usr/bin/env bash
# The small form: AdamP beside AdamW, SGDP beside SGD, three seeds; a table and a picture.
#
#   bash recipes/image_classification/launch/demo.sh        (or `make demo`, which installs first)
#
# SIZE=full runs the whole grid with five seeds and writes the recipe's page (`make paper-images`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# PASSIVE: threads that wait by spinning make a shared machine several times slower.
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
exec python -m recipes.image_classification.grid "${SIZE:-demo}"
