#!/usr/bin/env bash
# Runs the hostile peers, every lie about every word, with and without membarrier, and prints what came of them. Built
# with overflow checks and debug assertions, so that a number from a peer that is believed shows itself.
#
#   SCRIBBLE_S=10 ci/hostile.sh [FILTER]     seconds that each scribbler scribbles
set -euo pipefail
cd "$(dirname "$0")/.."

export FOREBAY_HOSTILE_THOROUGH=1
export SCRIBBLE_S="${SCRIBBLE_S:-10}"
figures="$(mktemp)"
trap 'rm -f "$figures"' EXIT

status=0
for fences in "" 1; do
    : > "$figures"
    echo "=== ${fences:+without }membarrier, $SCRIBBLE_S s of each scribbler"
    env ${fences:+FOREBAY_NO_MEMBARRIER=1} FOREBAY_HOSTILE_FIGURES="$figures" \
        cargo test ${CARGO_FLAGS:---locked} -p forebay-tests --test hostile -- "$@" || status=1
    sort "$figures"
    awk '/ lies: / { for (i = 2; i <= NF; i++) { if ($i == "fields") f += $(i - 1); if ($i == "lies:") l += $(i - 1);
             if ($i ~ /^refused/) r += $(i - 1); if ($i ~ /^dropped/) d += $(i - 1);
             if ($i == "without") n += $(i - 1); if ($i ~ /^wrong/) w += $(i - 1) } }
         END { printf "total: %d fields, %d lies: %d refused by name, %d peers dropped, %d without effect, %d wrong\n",
             f, l, r, d, n, w }' "$figures"
done
exit $status
