#!/usr/bin/env bash
# CenterNet in small on scenes of CC0 sprites: AdamW and AdamP, three seeds, two processes side by
# side with a core each; then the tables and the pictures.
#
#   bash recipes/object_detection/launch/demo.sh    (or `make demo-detection`, which installs first)
#
# Nothing is downloaded. RUNS (the folder) may be set in the environment; a run that is already
# finished in RUNS is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

RUNS=${RUNS:-runs/detection_demo}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

for stage in search final; do
  python -m recipes.object_detection.demo "$RUNS" --stage $stage --part 0 --of 2 &
  other=$!
  python -m recipes.object_detection.demo "$RUNS" --stage $stage --part 1 --of 2
  wait $other
done
python -m recipes.object_detection.compare "$RUNS"
