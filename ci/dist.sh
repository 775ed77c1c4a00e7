#!/usr/bin/env bash
# Builds everything that is released, tries the wheels in empty environments, prints sizes.
#
#   ci/dist.sh TARGET OUT        TARGET: cargo's target folder, OUT: where the results go
set -euo pipefail
cd "$(dirname "$0")/.."

target=$1
out=$PWD/$2
root=$PWD
flags=${CARGO_FLAGS:---locked}
venv=$root/.venv-dist
ci/venv.sh "$venv" ci/requirements-dist.txt
export PATH=$venv/bin:$PATH VIRTUAL_ENV=$venv PYO3_PYTHON=$venv/bin/python CARGO_TARGET_DIR=$target
rm -rf "$out"
mkdir -p "$out"

say() { printf '\n== %s\n' "$*"; }

# One C library for wheel and program: 2.17 is what every supported distribution has.
triple=$(uname -m)-unknown-linux-gnu
if python -c 'import ziglang' 2>/dev/null; then
    say "wheels for any Linux with glibc 2.17, linked by zig"
    cargo zigbuild $flags --release -p forebay-cli --target "$triple.2.17"
    wheel=(--zig --compatibility manylinux2014 --target "$triple")
    program=$target/$triple/release/forebay
else
    say "no zig: wheels for Linux with this machine's glibc or newer"
    cargo build $flags --release -p forebay-cli
    wheel=()
    program=$target/release/forebay
fi
(cd python-client && maturin build $flags --release "${wheel[@]}" --out "$out")
(cd python-client/ingest && maturin build $flags --release "${wheel[@]}" --out "$out")
python ci/add_script.py "$out"/forebay-[0-9]*.whl "$program"

say "the wheels in empty environments"
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
python -m venv "$trial/core"
# From a folder of its own, so that nothing of the checkout is importable.
"$trial/core/bin/python" -m pip install --quiet --disable-pip-version-check --no-index "$out"/forebay-[0-9]*.whl
(cd "$trial" && "$trial/core/bin/python" -I "$root/ci/smoke.py")
python -m venv "$trial/ingest"
"$trial/ingest/bin/python" -m pip install --quiet --disable-pip-version-check "$out"/forebay_ingest-*.whl
(cd "$trial" && "$trial/ingest/bin/python" -I -c 'import forebay_ingest; print("forebay_ingest works without forebay")')

musl=$(uname -m)-unknown-linux-musl
if [ -d "$(rustc --print target-libdir --target "$musl" 2>/dev/null)" ]; then
    say "static program"
    cargo build $flags --release -p forebay-cli --target "$musl"
    cp "$target/$musl/release/forebay" "$out/forebay-$musl"
    "$out/forebay-$musl" --version
else
    say "no static program: the Rust target $musl is not installed (rustup target add $musl)"
fi

say "crates, each built from its package alone"
mapfile -t published < <(cargo metadata $flags --no-deps --format-version 1 |
    python -c 'import json, sys; [print(p["name"]) for p in json.load(sys.stdin)["packages"] if p["publish"] is None]')
cargo package $flags --allow-dirty "${published[@]/#/--package=}"
for crate in "${published[@]}"; do
    cp "$target/package/$crate"-[0-9]*.crate "$out"
done

say "sizes in bytes"
(cd "$out" && wc -c -- *)
