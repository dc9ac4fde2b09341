#!/bin/sh
# Ablations of our own method: other settings, starting from the novices that benchmarks/run_results.sh
# wrote to OUT, and fewer demonstrations, with new novices. Finished runs are skipped, interrupted ones
# resumed. OUT must not contain spaces.
# Usage: benchmarks/run_ablations.sh OUT [SEEDS] [RECIPES]      e.g. runs/results "0" alfworld-results
set -eu
out=${1:?expected the folder of the runs}
seeds=${2:-0}
recipes=${3:-scienceworld-results alfworld-results}

# with NAME OPTIONS...: one run of $recipe and $seed, from the novice of the run without options
with() {
    run=$out/$recipe-seed$seed-$1
    shift
    [ -f "$run/results.json" ] || stepagent train "$recipe" --seed "$seed" --out "$run" --resume \
        --prompting.methods "$@"
    python benchmarks/learning.py add "$run"
}

for seed in $seeds; do
    for recipe in $recipes; do
        novice=$out/$recipe-seed$seed
        ours="--novice $novice --methods implicit inverse"
        with practice $ours --detours 0
        with rollout --novice $novice --methods inverse --detours 0 --inverse.states rollout
        with two-in-a-row $ours dagger --detours 2
        with one-action $ours --inspection.num-actions 1
        with four-actions $ours --inspection.num-actions 4
        with five-rounds --novice $novice --methods sft_more implicit inverse dagger --rounds 5
        with beta-half --novice $novice --methods implicit --implicit.beta 0.5
        with beta-tenth --novice $novice --methods implicit --implicit.beta 0.1 --implicit.sft-coef 1
        with gail --novice $novice --methods inverse --inverse.discriminator.reward gail
        with log-d --novice $novice --methods inverse --inverse.discriminator.reward log-d
        with sft-faster --novice $novice --methods sft_more --sft-more.optimizer.learning-rate 3e-4
        if [ $recipe = alfworld-results ]; then  # the other recipe has it already
            with anchor-one --novice $novice --methods inverse --inverse.ppo.sft-coef 1
        fi
        with no-anchor --novice $novice --methods inverse --inverse.ppo.sft-coef 0
        with no-entropy --novice $novice --methods inverse --inverse.ppo.ent-coef 0
        with kl --novice $novice --methods inverse --inverse.ppo.kl-coef 0.04
        with step-ratio --novice $novice --methods inverse --inverse.ppo.ratio step
        # 10, 25 and 50 % of the demonstrations; in ScienceWorld the novice clones half of them.
        case $recipe in
            alfworld-results) shares="5:5 12:12 25:25" ;;
            *) shares="4:7 9:19 18:37" ;;
        esac
        for share in $shares; do
            cloned=${share%:*} all=${share#*:}
            with "share-$all" --methods sft_more implicit inverse dagger \
                --data.sft "$cloned" --data.reflection "$all" --data.shared "$cloned"
        done
    done
done
python benchmarks/learning.py write
