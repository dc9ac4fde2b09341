#!/bin/sh
# Runs all methods and seeds of the result tables, one after another. Finished runs are skipped,
# interrupted ones resumed. Usage: benchmarks/run_results.sh OUT [SEEDS] [RECIPES]
#   e.g. benchmarks/run_results.sh runs/results "0 1 2 3 4"
# Two of these may share OUT if their seeds differ; set OMP_NUM_THREADS=1 so that they share the cores.
set -eu
out=${1:?expected the folder for the runs}
seeds=${2:-0 1 2 3 4}
recipes=${3:-scienceworld-results alfworld-results}
for seed in $seeds; do
    for recipe in $recipes; do
        run=$out/$recipe-seed$seed
        [ -f "$run/results.json" ] || stepagent train $recipe --seed "$seed" --out "$run" --resume
        python benchmarks/learning.py add "$run"
    done
done
python benchmarks/learning.py write
