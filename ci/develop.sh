#!/usr/bin/env bash
# Builds Python packages of this repository with optimization and installs them into a virtual environment, so that
# changes to their Python files count at once and changes to their Rust files after the next call.
#
#   ci/develop.sh VENV FOLDER...
set -euo pipefail

venv=$1
shift
installer=()
if ! [ -x "$venv/bin/pip" ]; then
    # An environment made by uv has no pip; it may have been made when uv was still there.
    if command -v uv >/dev/null; then installer=(--uv); else "$venv/bin/python" -m ensurepip >/dev/null; fi
fi
for folder in "$@"; do
    (
        cd "$folder"
        VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH \
            "$venv/bin/maturin" develop --release ${CARGO_FLAGS:---locked} "${installer[@]}"
    )
done
