#!/usr/bin/env bash
# Runs the models of the ring protocol, loom's and then shuttle's, and prints what they explored. Both need a build of
# their own (`--cfg loom`, `--cfg shuttle` swap the atomics), optimized because a model visits millions of interleavings.
#
#   ci/model.sh                    all; LOOM_MAX_PREEMPTIONS raises the switches that each loom model looks at,
#                                  SHUTTLE_ITERATIONS the schedules of each kind (3000) that each history runs in
#   ci/model.sh FILTER [ARGS]      loom models whose name matches, with arguments for the test program
#   ci/model.sh --short            all with small bounds, for `make test`
set -euo pipefail
cd "$(dirname "$0")/.."

flags=${CARGO_FLAGS:---locked} target=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0
models() {
    local with=$1
    shift
    RUSTFLAGS="${RUSTFLAGS:-} --cfg $with" CARGO_TARGET_DIR=$target/$with \
        cargo test $flags --release --lib -p forebay-ring "$@"
}
# Sums up one checker's lines: model, how, runs, seconds, deaths.
summary() {
    awk -F '\t' -v checker="$1" '
        { runs[$1] += $3; took[$1] += $4; how[$2] = 1; all += $3; deaths += $5 }
        END {
            for (m in runs) { n++; printf "%-84s %9d %8.2f s\n", m, runs[m], took[m] | "sort" }
            close("sort")
            for (h in how) bounds = bounds (bounds ? "; " : "") h
            printf "%s: %d models, %d executions", checker, n, all
            if (deaths) printf ", %d deaths in them", deaths
            printf " (%s)\n", bounds
        }' "$2"
}

if [[ $# -gt 0 && $1 != --short ]]; then
    models loom "$@"
    exit
fi
figures=$(mktemp -d)
trap 'rm -rf "$figures"' EXIT
iterations=3000
if [[ ${1:-} == --short ]]; then
    export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-1}
    iterations=300
fi
export SHUTTLE_ITERATIONS=${SHUTTLE_ITERATIONS:-$iterations}
for checker in loom shuttle; do
    start=$EPOCHREALTIME
    FOREBAY_MODEL_FIGURES=$figures/$checker models $checker -q models
    summary $checker "$figures/$checker"
    awk -v a="$start" -v b="$EPOCHREALTIME" -v c=$checker 'BEGIN { printf "%s: %.0f s with its build\n", c, b - a }'
done
