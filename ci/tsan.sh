#!/usr/bin/env bash
# The threads-on-one-mapping tests of the ring under ThreadSanitizer, with the standard library built for it: without that
# it reports races that are none. Then the same, and the unit tests of ring and layout, under AddressSanitizer. No
# suppressions. Fails on the first report.
#
#   ci/tsan.sh             FOREBAY_MESSAGES messages a test (20000)
#   ci/tsan.sh --weaken [REGEX]   the ring with one ordering on the way of the payload weakened, in a copy: each has to be
#                                 reported; only files that match
#
# Needs the toolchain `nightly`, or a default one that takes unstable options, and the source of its standard library:
# where rustup has it (rustup component add rust-src), or a Debian package of the same minor version, which is fetched
# from the mirror that apt is set up for into <target>/tools.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/tools"
target=$(cd "$target" && pwd)
export FOREBAY_MESSAGES=${FOREBAY_MESSAGES:-20000}

case $(uname -m) in
x86_64 | aarch64) triple=$(uname -m)-unknown-linux-gnu ;;
*) echo "tsan: no thread sanitizer for $(uname -m)" >&2 && exit 1 ;;
esac
if rustc +nightly --version >/dev/null 2>&1; then
    export RUSTUP_TOOLCHAIN=nightly
else
    export RUSTC_BOOTSTRAP=1
fi
minor=$(rustc --version | sed -n 's/^rustc \(1\.[0-9]*\)\..*/\1/p')

# Sets `library` to the source of the standard library, fetching it if need be.
find_library() {
    library=$(rustc --print sysroot)/lib/rustlib/src/rust/library
    [[ -d $library ]] && return
    local kept=$target/tools/rust-src-$minor
    if [[ ! -d $kept ]]; then
        fetch_library "$kept" || {
            echo "tsan: no source of the standard library of $(rustc --version)." >&2
            echo "tsan: 'rustup component add rust-src', or unpack that of $minor so that $kept/library is there" >&2
            exit 1
        }
    fi
    library=$kept/library
    # Cargo looks for it in the toolchain unless it is told otherwise.
    export __CARGO_TESTS_ONLY_SRC_ROOT=$library
}

# A Debian package of the right minor version, whatever release has it; apt checks its signature.
fetch_library() {
    local apt=$target/tools/apt mirror version
    command -v apt-get >/dev/null || return 1
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' | sed -n '/security/d; s/^Debian //p' | head -1)
    [[ -n $mirror ]] || return 1
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    for release in sid testing stable; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main"
    done >"$apt/sources"
    local options=(-o Dir::Etc::sourcelist="$apt/sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$apt/lists"
        -o Dir::Cache="$apt" -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=)
    echo "tsan: looking for the source of the standard library of $minor"
    apt-get "${options[@]}" -qq update || return 1
    local package
    for package in rust-src rust-web-src; do
        version=$(apt-cache "${options[@]}" madison "$package" 2>/dev/null |
            awk -v minor="$minor." 'index($3, minor) == 1 { print $3; exit }')
        if [[ -n $version ]]; then
            (cd "$apt" && apt-get "${options[@]}" -qq download "$package=$version" && dpkg-deb -x ./*.deb unpacked) || return 1
            mv "$apt"/unpacked/usr/src/rustc-*/library "$apt/library"
            mkdir -p "$1.new"
            mv "$apt/library" "$1.new/"
            mv "$1.new" "$1"
            rm -rf "$apt"
            return
        fi
    done
    return 1
}

# sanitized SANITIZER CARGO-ARGUMENTS…
sanitized() {
    local sanitizer=$1
    shift
    local std=()
    [[ $sanitizer == thread ]] && std=(-Zbuild-std)
    RUSTFLAGS="-Zsanitizer=$sanitizer" CARGO_TARGET_DIR=$target/$sanitizer-sanitizer \
        cargo test ${CARGO_FLAGS:---locked} "${std[@]}" --target "$triple" "$@"
}

# Weakens one ordering at a time, in a copy of the workspace.
weaken() {
    local survived=0 total=0
    # Not local: the trap runs when this function is over.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    git ls-files -z -- . ':!tests/fuzz/corpus' | xargs -0 cp --parents -t "$copy"
    local file anchor from to
    while IFS='|' read -r file anchor from to; do
        [[ $file =~ ${2:-} ]] || continue
        total=$((total + 1))
        local path=$copy/crates/forebay-ring/src/$file
        cp "$path" "$copy/kept"
        ANCHOR=$anchor FROM=$from TO=$to awk '
            !done && index($0, ENVIRON["ANCHOR"]) { near = NR }
            !done && near && NR <= near + 14 && (at = index($0, ENVIRON["FROM"])) {
                $0 = substr($0, 1, at - 1) ENVIRON["TO"] substr($0, at + length(ENVIRON["FROM"])); done = 1
            }
            { print } END { exit !done }' "$copy/kept" >"$path" || {
            echo "tsan: no such place: $anchor" >&2
            exit 1
        }
        if (cd "$copy" && TSAN_OPTIONS=halt_on_error=1 sanitized thread -q -p forebay-tests --test threads) >"$copy/log" 2>&1; then
            echo "NOT REPORTED  $file: $anchor"
            survived=$((survived + 1))
        elif grep -q 'ThreadSanitizer: data race' "$copy/log"; then
            echo "reported      $file: $anchor"
        else
            tail -20 "$copy/log"
            echo "tsan: failed otherwise: $anchor" >&2
            exit 1
        fi
        cp "$copy/kept" "$path"
    done <<'END'
publisher.rs|E1 commit, Release: whoever claims|Ordering::Release|Ordering::Relaxed
publisher.rs|E3 position, Release: the words|Ordering::Release|Ordering::Relaxed
reader.rs|E3 position, Acquire: the entry's words|Ordering::Acquire|Ordering::Relaxed
queue/lease.rs|E2 release, Release|Ordering::Release|Ordering::Relaxed
queue/producer.rs|E2 release, Acquire: if it says DONE|Ordering::Acquire|Ordering::Relaxed
queue/lease.rs|E4 return, Release|Ordering::Release|Ordering::Relaxed
broadcast/consumer.rs|E2 release, Release|Ordering::Release|Ordering::Relaxed
broadcast/producer.rs|E2 release, Acquire|Ordering::Acquire|Ordering::Relaxed
END
    echo "$total weakened orderings, $survived not reported"
    [[ $survived == 0 ]]
}

find_library
echo "tsan: $(rustc --version), standard library from $library"
if [[ ${1:-} == --weaken ]]; then
    weaken "$@"
    exit
fi
export TSAN_OPTIONS=halt_on_error=1
start=$SECONDS
sanitized thread -p forebay-tests --test threads
sanitized thread -p forebay-ring --lib
tests=$(sanitized thread -q -p forebay-tests --test threads -- --list 2>/dev/null | grep -c ': test$')
# Leaks and overruns: what the threads tests cannot see.
FOREBAY_MESSAGES=2000 sanitized address -p forebay-tests --test threads
sanitized address -p forebay-ring -p forebay-layout --lib
cd "$root"
printf '\n%-24s %8s %10s %8s\n' sanitizer tests messages reports
printf '%-24s %8s %10s %8s\n' "thread" "$tests" "$FOREBAY_MESSAGES" 0
printf '%-24s %8s %10s %8s\n' "address" "$tests" 2000 0
echo "messages are those of one test; $((SECONDS - start)) s"
