#!/usr/bin/env bash
# Makes the virtual environment that the demo and the tests run in, or finds that it is up to date.
#
#   ci/venv.sh VENV REQUIREMENTS
#
# Nothing that is installed elsewhere on the machine is used, except a CPython of at least 3.11 and, if it is there, uv.
# The stamp holds what the environment was made from; while that is unchanged, nothing is downloaded or even asked for.
set -euo pipefail

venv=$1
requirements=$2

python=
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "no CPython of at least 3.11 found (tried \$PYTHON, python3, python3.11 to python3.14);" \
        "install one, or name it: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi

want="$("$python" -c 'import sys; print(sys.version)') $(cat "$requirements" "$0" | sha256sum)"
stamp=$venv/.made-from
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

echo "making $venv with $("$python" --version) from $requirements (torch alone is a download of about 3 GB)"
rm -rf "$venv"
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" "$venv"
    uv=$(command -v uv)
else
    "$python" -m venv "$venv" || {
        echo "$python cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2
        exit 1
    }
    # uv downloads in parallel and keeps a cache of unpacked wheels; without it pip does the same more slowly.
    "$venv/bin/pip" install --quiet --disable-pip-version-check uv || true
    uv=$venv/bin/uv
fi
if [ -x "$uv" ]; then
    "$uv" pip install --quiet --python "$venv/bin/python" --requirement "$requirements"
else
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
fi
printf '%s\n' "$want" >"$stamp"
