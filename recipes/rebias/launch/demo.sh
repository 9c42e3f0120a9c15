#!/usr/bin/env bash
# ReBias in small on real digits: Adam with L2, AdamW and AdamP, two shares of bias, five seeds, two
# processes side by side with a core each; then the tables and the picture.
#
#   bash recipes/rebias/launch/demo.sh    (or `make demo-rebias`, which installs first)
#
# Nothing is downloaded. RUNS (the folder) may be set in the environment; a run that is already
# finished in RUNS is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

RUNS=${RUNS:-runs/rebias_demo}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

for stage in search final; do
  python -m recipes.rebias.demo "$RUNS" --stage $stage --part 0 --of 2 &
  other=$!
  python -m recipes.rebias.demo "$RUNS" --stage $stage --part 1 --of 2
  wait $other
done
python -m recipes.rebias.compare "$RUNS"
