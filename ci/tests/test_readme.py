"""What README and docs show is what there is: the code runs, the links lead somewhere, the manifests agree."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# The Rust halves of the examples, as `make examples` builds them.
EXAMPLES = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/**/*.md"))]


def block(language: str) -> str:
    """The first code block of a language in the README."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found, language
    return found[1]


@pytest.mark.parametrize(("language", "file"), [("rust", "main.rs"), ("python", "consumer.py")])
def test_the_code_in_the_readme_is_the_example(language: str, file: str) -> None:
    assert block(language) == (ROOT / "examples/readme" / file).read_text()


def test_the_code_in_the_readme_runs(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o700)
    environment = {**os.environ, "FOREBAY_DIR": str(tmp_path)}
    producer = subprocess.Popen([EXAMPLES / "readme"], env=environment)
    try:
        consumer = subprocess.run(
            [sys.executable, ROOT / "examples/readme/consumer.py"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert producer.wait(timeout=30) == 0
    finally:
        producer.kill()
        producer.wait()
    assert consumer.stdout.splitlines() == [f"{step + 1} (2, 4) {step * 8}" for step in range(10)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: pathlib.Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def metadata() -> dict:
    """What cargo knows of the workspace."""
    listing = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--offline"], cwd=ROOT, capture_output=True, check=True
    )
    return json.loads(listing.stdout)


def tree(*arguments: str) -> set[str]:
    """Names and versions in a dependency tree, the root left out."""
    listing = subprocess.run(
        ["cargo", "tree", "--offline", "--prefix", "none", "--edges", "normal", "--format", "{p}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = listing.stdout.splitlines()
    return {" ".join(line.split()[:2]) for line in lines[1:] if line.strip()} - {" ".join(lines[0].split()[:2])}


def test_the_library_has_at_most_25_dependencies_and_no_runtime() -> None:
    packages = tree("--package", "forebay")
    assert len(packages) <= 25, sorted(packages)
    names = {package.split()[0] for package in packages}
    assert not names & {"tokio", "pyo3", "hyper", "axum", "async-std", "tokenizers"}


def test_layers_point_downwards_only() -> None:
    order = ["forebay-layout", "forebay-os", "forebay-ring", "forebay", "forebay-ingest"]
    order += ["forebay-serve", "forebay-bench", "forebay-cli"]
    packages = {package["name"]: package for package in metadata()["packages"]}
    for place, name in enumerate(order):
        ours = {dep["name"] for dep in packages[name]["dependencies"] if dep["kind"] is None} & set(order)
        assert ours <= set(order[:place]), name
    ours = {dep["name"] for dep in packages["forebay-ring"]["dependencies"] if dep["kind"] is None}
    assert ours == {"forebay-layout", "loom", "shuttle"}, "the protocol makes no system call"


def test_what_is_published_says_everything_a_registry_wants() -> None:
    published = [package for package in metadata()["packages"] if package["source"] is None and package["publish"] is None]
    assert {package["name"] for package in published} == {
        "forebay-layout",
        "forebay-os",
        "forebay-ring",
        "forebay",
        "forebay-ingest",
        "forebay-serve",
        "forebay-bench",
        "forebay-cli",
    }
    for package in published:
        assert package["license"] == "MIT OR Apache-2.0", package["name"]
        assert package["rust_version"] and package["description"] and package["repository"], package["name"]
