#!/bin/sh
# An agent from a file of messages:
#
#     sh examples/own_data.sh [RUN [OPTIONS OF stepagent train own]]
#
# messages.jsonl beside this script holds conversations as TRL and Hugging Face data sets do, one
# per line: {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}
# Set MESSAGES to a file of your own. MODEL is "scratch" for a small model made from the messages,
# which needs no download; set it to a model folder or an id on the hub for a real language model.
set -eu
run=${1:-runs/own-data}
[ $# -eq 0 ] || shift

stepagent train own --demonstrations "${MESSAGES:-$(dirname "$0")/messages.jsonl}" \
  --model "${MODEL:-scratch}" --out "$run" "$@"
# The table that was just printed names the best round of each method; this exports round 1.
stepagent export-model "$run/units/implicit-round1" --out "$run-agent"
