#!/usr/bin/env bash
# Fuzzes the targets of tests/fuzz under AddressSanitizer, one after the other, and prints a table of what happened.
# Fails if one crashed, hung, leaked or ran out of memory; the input that did it is named with a command that shows it
# again.
#
#   ci/fuzz.sh            FUZZ_SECONDS seconds a target (60), FUZZ_TARGETS="schema control …" (all)
#   ci/fuzz.sh --keep     afterwards the inputs that reach everything reached so far go into tests/fuzz/corpus
#
# Compiler: the toolchain `nightly` if there is one, else the default one told to allow unstable options. cargo-fuzz is
# installed from the registry into <target>/tools if it is not there. New inputs and failures stay in <target>/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.13.2
# What --keep may take a target, in bytes: together less than tests/fuzz/tests/replay.rs allows.
KEEP_BYTES=19000

seconds=${FUZZ_SECONDS:-60}
targets=${FUZZ_TARGETS:-attach control feed http image jpeg machine png recipe schema service shard table text webp}
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
work=$target/fuzz
keep=no
[[ ${1:-} == --keep ]] && keep=yes

case $(uname -m) in
x86_64 | aarch64) triple=$(uname -m)-unknown-linux-gnu ;;
*) echo "fuzz: no address sanitizer for $(uname -m)" >&2 && exit 1 ;;
esac

if ! "$target/tools/bin/cargo-fuzz" --version 2>/dev/null | grep -qF " $VERSION"; then
    echo "fuzz: installing cargo-fuzz $VERSION into $target/tools"
    cargo install --quiet --locked --version "$VERSION" --root "$target/tools" cargo-fuzz
fi
export PATH=$target/tools/bin:$PATH
if rustc +nightly --version >/dev/null 2>&1; then
    export RUSTUP_TOOLCHAIN=nightly
else
    export RUSTC_BOOTSTRAP=1
fi

# Thin LTO would inline the sanitizer's checks away from where they are; stripped binaries name no lines.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=none
echo "fuzz: building with $(rustc --version)"
for name in $targets; do
    cargo fuzz build --fuzz-dir tests/fuzz --features engine --target "$triple" --target-dir "$work" \
        --codegen-units 16 "$name"
done

# Directories of rings: the engine ends without dropping anything.
export TMPDIR=$work/tmp
rm -rf "$TMPDIR"
mkdir -p "$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT
# The engine reports leaks itself, at the end of an input; the runtime's own report would come after it.
export ASAN_OPTIONS=detect_odr_violation=0:allocator_may_return_null=1

stat_of() { sed -n "s/^stat::$2: *//p" "$1" | tail -1; }

rows=()
failed=0
for name in $targets; do
    binary=$work/$triple/release/$name
    corpus=$work/corpus/$name
    artifacts=$work/artifacts/$name
    log=$work/$name.log
    mkdir -p "$corpus" "$artifacts"
    marker=$(mktemp)
    echo "fuzz: $name for $seconds s"
    status=0
    "$binary" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
        -dict=tests/fuzz/dictionary -artifact_prefix="$artifacts/" "$corpus" "tests/fuzz/corpus/$name" \
        >"$log" 2>&1 || status=$?
    found=$(find "$artifacts" -type f -newer "$marker")
    if [[ $status != 0 ]]; then
        failed=1
        # What an aborted process left of its rings.
        find /dev/shm -maxdepth 1 -name "forebay.$(id -u).*.fuzz.*" -newer "$marker" -delete
        grep -E -m3 'panicked at|ERROR: |SUMMARY: ' "$log" | sed 's/^/    /' || tail -5 "$log"
        for input in $found; do
            echo "    again: $binary $input"
        done
    fi
    rm -f "$marker"
    last=$(grep -E '^#[0-9]+.*cov: ' "$log" | tail -1 || true)
    rows+=("$(printf '%-10s %12s %9s %8s %10s %6s %8s' "$name" "$(stat_of "$log" number_of_executed_units)" \
        "$(stat_of "$log" average_exec_per_sec)" "$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' <<<"$last")" \
        "$(sed -n 's/.*ft: \([0-9]*\).*/\1/p' <<<"$last")" "$(stat_of "$log" new_units_added)" \
        "$(grep -c . <<<"$found" || true)")")
done

printf '\n%-10s %12s %9s %8s %10s %6s %8s\n' target executions exec/s edges features new crashes
printf '%s\n' "${rows[@]}"

if [[ $keep == yes && $failed == 0 ]]; then
    for name in $targets; do
        merged=$work/merged/$name
        rm -rf "$merged"
        mkdir -p "$merged"
        "$work/$triple/release/$name" -merge=1 -set_cover_merge=1 -max_len=1024 "$merged" \
            "tests/fuzz/corpus/$name" "$work/corpus/$name" >/dev/null 2>&1
        # Inputs that once made the target fail stay under their names; of the others, the shortest that fit.
        find "tests/fuzz/corpus/$name" -type f ! -name 'crash-*' -delete
        find "$merged" -type f -printf '%s %p\n' | sort -n |
            awk -v most="$KEEP_BYTES" '{ sum += $1 } sum <= most { print $2 }' |
            xargs -r cp -t "tests/fuzz/corpus/$name"
        echo "kept $(find "tests/fuzz/corpus/$name" -type f | wc -l) inputs of $name," \
            "$(cat "tests/fuzz/corpus/$name"/* | wc -c) bytes"
    done
fi
exit $failed
