#!/usr/bin/env bash
# Runs the loom models of the ring protocol. They need a build of their own (`--cfg loom` swaps the atomics), optimized
# because a model visits millions of interleavings.
#
#   ci/model.sh [FILTER]
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"
exec cargo test ${CARGO_FLAGS:---locked} --release --lib -p forebay-ring "$@"
