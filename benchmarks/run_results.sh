#!/bin/sh
# All methods and seeds of the tables, one after the other; what is finished is skipped, what was cut
# off goes on. Usage: benchmarks/run_results.sh OUT [SEEDS] [RECIPES]      e.g. runs/results "0 1 2 3 4"
# Two streams may share OUT, each with seeds of its own; OMP_NUM_THREADS=1 then keeps them apart.
set -eu
out=${1:?names the folder for the runs}
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
