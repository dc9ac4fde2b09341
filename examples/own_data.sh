#!/bin/sh
# An agent from a file of messages:
#
#     sh examples/own_data.sh [RUN [OPTIONS OF stepagent train own]]
#
# messages.jsonl beside this script holds conversations as TRL and Hugging Face data sets do, one
# per line: {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}
# MODEL is "scratch" for a small model made from the demonstrations, which needs no download; set it
# to a model folder or an id on the hub to train a real language model.
set -eu
run=${1:-runs/own-data}
[ $# -eq 0 ] || shift

stepagent train own --demonstrations "$(dirname "$0")/messages.jsonl" --model "${MODEL:-scratch}" \
  --out "$run" "$@"
stepagent export-model "$run/units/implicit-round1" --out "$run-agent"
