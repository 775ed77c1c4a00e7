#!/usr/bin/env bash
# Weakens the ring in one place at a time, in a copy, and runs the loom models on each: prints which model caught it.
# Ends with 1 if a fault of ci/mutants.list survives, or if the models fail without one.
#
#   ci/mutants.sh              all of them
#   ci/mutants.sh 'E3|E5'      those whose line matches
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
filter=${1:-.}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/crates"
cp -r "$root/crates/forebay-layout" "$root/crates/forebay-ring" "$copy/crates/"
cp "$root/Cargo.lock" "$copy/"
# The workspace without the other members.
awk '/^(default-)?members = \[/ { skip = 1 } !skip { print } /^\]/ { skip = 0 }
     /^resolver/ { print "members = [\"crates/forebay-layout\", \"crates/forebay-ring\"]" }' \
    "$root/Cargo.toml" > "$copy/Cargo.toml"
src=$copy/crates/forebay-ring/src
export RUST_BACKTRACE=0 RUSTFLAGS="--cfg loom" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_INCREMENTAL=1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$copy/target}/mutants
models() {
    (cd "$copy" && timeout 300 cargo test -q -p forebay-ring --release --lib models 2>&1)
}
if ! models > "$copy/log"; then
    cat "$copy/log"
    echo "the models fail without any fault" >&2
    exit 1
fi
total=0 survived=0
printf '%-24s %-52s %s\n' file fault 'caught by'
while IFS= read -r line; do
    [[ -z $line || $line == \#* ]] && continue
    [[ $line =~ $filter ]] || continue
    IFS=$'\t' read -r file anchor from to < <(sed 's/ *$//; s/ | /\t/; s/ | /\t/; s/ | /\t/; s/ |$/\t/' <<< "$line")
    total=$((total + 1))
    cp "$src/$file" "$copy/kept"
    ANCHOR=$anchor FROM=$from TO=$to awk '
        !done && index($0, ENVIRON["ANCHOR"]) { near = NR }
        !done && near && NR <= near + 14 && (at = index($0, ENVIRON["FROM"])) {
            $0 = substr($0, 1, at - 1) ENVIRON["TO"] substr($0, at + length(ENVIRON["FROM"])); done = 1
        }
        { print } END { exit !done }' "$copy/kept" > "$src/$file" || { echo "no such place: $line" >&2; exit 1; }
    if models > "$copy/log"; then
        caught='NOTHING'
        survived=$((survived + 1))
    elif grep -q '^error' "$copy/log" && ! grep -q 'panicked at' "$copy/log"; then
        cat "$copy/log"
        echo "does not build: $line" >&2
        exit 1
    else
        caught=$(sed -n 's/^    models::\(.*\)$/\1/p' "$copy/log" | sort -u | head -1)
        more=$(sed -n 's/^    models::\(.*\)$/\1/p' "$copy/log" | sort -u | wc -l)
        [[ $more -gt 1 ]] && caught="$caught (and $((more - 1)) more)"
    fi
    printf '%-24s %-52s %s\n' "$file" "${from:0:36} → ${to:0:20}" "${caught:-the time limit}"
    cp "$copy/kept" "$src/$file"
done < "$root/ci/mutants.list"
echo "$total faults, $survived survived"
[[ $survived -eq 0 ]]
