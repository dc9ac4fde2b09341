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

printed=$(stepagent train own --demonstrations "${MESSAGES:-$(dirname "$0")/messages.jsonl}" \
  --model "${MODEL:-scratch}" --out "$run" "$@")
printf '%s\n' "$printed"
# Near the end it says which policy did best: "Policy: RUN/units/NAME".
stepagent export-model "$(printf '%s\n' "$printed" | sed -n 's/^Policy: //p')" --out "$run-agent"
