#!/usr/bin/env bash
# Retrieval in small on icons: AdamW and AdamP, BatchNorm live and frozen, five seeds, two processes
# side by side with a core each; then the tables and the picture.
#
#   bash recipes/image_retrieval/launch/demo.sh    (or `make demo-retrieval`, which installs first)
#
# Nothing is downloaded. RUNS (the folder) may be set in the environment; a run that is already
# finished in RUNS is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

RUNS=${RUNS:-runs/retrieval_demo}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

# What takes the place of ImageNet weights: concepts that neither train nor test later.
if [[ ! -f $RUNS/backbone/model.safetensors ]]; then
  python -m recipes.image_retrieval.train recipes/image_retrieval/configs/demo.yaml \
    --source spare_icons --num_train_epochs 15 --eval_strategy no --optim adamw_torch \
    --learning_rate 3e-3 --output_dir "$RUNS/backbone"
fi
for stage in search final; do
  python -m recipes.image_retrieval.demo "$RUNS" --stage $stage --part 0 --of 2 &
  other=$!
  python -m recipes.image_retrieval.demo "$RUNS" --stage $stage --part 1 --of 2
  wait $other
done
python -m recipes.image_retrieval.compare "$RUNS"
