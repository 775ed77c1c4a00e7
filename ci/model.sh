#!/usr/bin/env bash
# Runs the loom models of the ring protocol. They need a build of their own (`--cfg loom` swaps the atomics), optimized
# because a model visits millions of interleavings. Each model says how many switches between threads it looks at;
# LOOM_MAX_PREEMPTIONS raises that.
#
#   ci/model.sh [FILTER]
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
exec cargo test ${CARGO_FLAGS:---locked} --release --lib -p forebay-ring "${@:-models}"
