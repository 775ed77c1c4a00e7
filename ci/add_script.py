"""Adds a program to a wheel, so that installing the wheel puts it on PATH.

    python ci/add_script.py WHEEL PROGRAM

maturin does the same from a folder beside pyproject.toml, which then would have to exist for every development build.
"""

import base64
import hashlib
import pathlib
import stat
import sys
import zipfile


def digest(content: bytes) -> str:
    """A RECORD line's hash."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def add(wheel: pathlib.Path, program: pathlib.Path) -> None:
    """Rewrites `wheel` with `program` among its scripts and in its RECORD."""
    made = wheel.with_suffix(".part")
    content = program.read_bytes()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        (record,) = [name for name in old.namelist() if name.endswith(".dist-info/RECORD")]
        script = f"{record.removesuffix('.dist-info/RECORD')}.data/scripts/{program.name}"
        for item in old.infolist():
            if item.filename not in (record, script):
                new.writestr(item, old.read(item))
        entry = zipfile.ZipInfo(script)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = (stat.S_IFREG | 0o755) << 16
        new.writestr(entry, content)
        lines = [line for line in old.read(record).decode().splitlines() if not line.startswith(f"{script},")]
        lines.insert(-1, f"{script},{digest(content)},{len(content)}")
        new.writestr(old.getinfo(record), "\n".join(lines) + "\n")
    made.rename(wheel)


if __name__ == "__main__":
    add(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
