#!/usr/bin/env bash
# Builds the Python client with optimization and installs it into a virtual environment, so that changes to its Python
# files count at once and changes to its Rust files after the next call.
#
#   ci/develop.sh VENV FOLDER
set -euo pipefail

venv=$1
cd "$2"
VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH exec "$venv/bin/maturin" develop --release ${CARGO_FLAGS:---locked} \
    $([ -x "$venv/bin/pip" ] || echo --uv)
