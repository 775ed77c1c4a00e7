# Everything that is done with this repository, by people and by continuous integration alike.
#
#   make demo         set up, build, feed a real corpus into a ring, check every batch in Python
#   make test         set up, then every check and test there is, Rust and Python; .ci/run calls this
#   make help         all targets
#
# Needed beforehand: cargo (with rustfmt and clippy for `make test`), a C compiler, a CPython of at least 3.11, make,
# Linux.
# `make SETTING=value`: PYTHON (interpreter to build .venv from), CARGO_FLAGS (--locked), DEMO_FLAGS.

SHELL       := /bin/bash -euo pipefail
.DEFAULT_GOAL := help

CARGO_FLAGS ?= --locked
VENV        := $(CURDIR)/.venv
PY          := $(VENV)/bin/python
TARGET      := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FOREBAY     := $(TARGET)/release/forebay
# The Python packages have no tests in Rust: they are tested from Python.
RUST        := --workspace --exclude forebay-python --exclude forebay-ingest-python
# Checked and tested with what a default build leaves out; one set everywhere, or cargo builds everything again.
FEATURES    := --features forebay/cuda,forebay-serve/grpc
PACKAGES    := python-client python-client/ingest

# One interpreter for every build of the extension, or cargo rebuilds it whenever the interpreter seems to change.
export PYO3_PYTHON := $(PY)
export FOREBAY_BIN := $(FOREBAY)

.PHONY: help setup build build-optimized binary python examples demo test check rust-test fence-test fences python-test client-test ingest-test examples-test docs-test model model-short cargo-mutants crash fuzz tsan mutants conformance faults bench dist docs clean hostile soak instructions compare aims compare-ingest compare-serve serve-demo gpu

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## the virtual environment in .venv; nothing is downloaded if it is up to date
	@ci/venv.sh $(VENV) ci/requirements.txt

binary: ## target/release/forebay
	FOREBAY_COMMIT="$$(git describe --always --dirty --exclude='*' 2>/dev/null || true)" \
		cargo build $(CARGO_FLAGS) --release -p forebay-cli

python: setup ## the Python packages, built with optimization and installed into .venv
	@ci/develop.sh $(VENV) $(PACKAGES)

examples: ## the Rust halves of the examples, of what `make rust-test` has built
	cargo build $(CARGO_FLAGS) $(RUST) $(FEATURES) --bins

build: binary python examples ## all of these

demo: binary python ## feed the bundled corpus through a ring, check every batch as torch tensors, print the table
	$(PY) examples/demo/run.py $(DEMO_FLAGS)

serve-demo: binary python ## an embedder behind `forebay serve`: asked over HTTP, compared with transformers, stopped
	$(PY) examples/embedder/demo.py

test: setup ## every check and every test
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory -j rust-test build-optimized
	@$(MAKE) --no-print-directory model-short examples
	@$(MAKE) --no-print-directory python-test docs-test
	$(PY) ci/instructions.py --if-can

# Tests wait more than they compute: what the Python tests need is compiled meanwhile. One after the other, by recipes.
build-optimized:
	@$(MAKE) --no-print-directory binary
	@$(MAKE) --no-print-directory python

check: setup ## formatting and lints
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets $(FEATURES) -- -D warnings

rust-test: ## unit, process, hostile and documentation tests in Rust
	cargo test $(CARGO_FLAGS) $(RUST) $(FEATURES)
	@$(MAKE) --no-print-directory fence-test

fence-test: ## what goes to sleep and wakes once more, with fences in membarrier's stead
	FOREBAY_NO_MEMBARRIER=1 cargo test $(CARGO_FLAGS) $(RUST) $(FEATURES) --test hand_over --test process --test conformance

fences: build ## every suite once more, with fences in membarrier's stead; the models have both variants anyway
	FOREBAY_NO_MEMBARRIER=1 cargo test $(CARGO_FLAGS) $(RUST) $(FEATURES)
	FOREBAY_NO_MEMBARRIER=1 $(MAKE) --no-print-directory python-test crash soak

python-test: ## tests of the Python packages, and the examples, side by side (after `make build`)
	@$(MAKE) --no-print-directory -j2 --output-sync=target client-test examples-test ingest-test

client-test: ## tests of the Python client
	cd python-client && $(PY) -m pytest

ingest-test: ## tests of forebay.ingest
	cd python-client/ingest && $(PY) -m pytest

examples-test: ## the examples, as their READMEs say
	$(PY) -m pytest examples

docs-test: ## what README, docs and the manifests promise
	$(PY) -m pytest ci/tests

model: ## loom and shuttle: the protocol in every interleaving of a few steps, and in SHUTTLE_ITERATIONS (3000) long ones
	ci/model.sh

model-short: ## the same with small bounds
	ci/model.sh --short

mutants: ## the ring with one fault at a time, each of which a test notices; writes the table of docs/protocol.md
	ci/mutants.py

cargo-mutants: ## cargo-mutants on the layout and the ring; survivors are those of ci/mutants.survivors, or it fails
	ci/cargo-mutants.py

faults: python ## every system call of every operation fails in turn, descriptors and space run out, interpreters end; prints figures
	FOREBAY_FAULTS=full cargo test $(CARGO_FLAGS) -p forebay-tests --test faults -- --nocapture
	cd python-client && $(PY) -m pytest -v tests/test_faults_exit.py tests/test_faults_exceptions.py tests/test_faults_threads.py

hostile: ## peers that lie about every word, scribble for SCRIBBLE_S seconds, squat and flood; prints what came of it
	ci/hostile.sh

fuzz: ## cargo-fuzz under AddressSanitizer, FUZZ_SECONDS (60) a target; prints executions, coverage, crashes
	ci/fuzz.sh

crash: ## every instruction of every operation as a point of death: POINTS (200000) audited, from SEED (1)
	cargo build $(CARGO_FLAGS) --profile crash -p forebay-tests --bin forebay-crash
	$(TARGET)/crash/forebay-crash --points $(or $(POINTS),200000) --seed $(or $(SEED),1)

tsan: ## the ring's threads under ThreadSanitizer, then AddressSanitizer; any report fails
	ci/tsan.sh

conformance: python ## the one suite over kind x backing x wake x language, as a matrix; an empty cell fails
	cargo build $(CARGO_FLAGS) --release -p forebay-tests --bin forebay-conformance
	-$(PY) tests/conformance/runner.py $(TARGET)/release/forebay-conformance $(TARGET)/conformance-python.jsonl
	$(TARGET)/release/forebay-conformance --merge $(TARGET)/conformance-python.jsonl --languages rust,python

soak: python ## MINUTES=n of kills, hundreds a second, with a book outside of the transport; SEED=n repeats one
	cargo build $(CARGO_FLAGS) --release -p forebay-tests --bin forebay-soak
	$(TARGET)/release/forebay-soak --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED)) \
		--python $(PY) tests/soak/actor.py $(SOAK_FLAGS)

dist: ## wheels, static program and crates in dist/, the wheels installed and tried in an empty environment
	ci/dist.sh $(TARGET) dist

bench: python ## what each operation costs: criterion for the Rust API, then the Python client's beside the bare calls
	cargo bench $(CARGO_FLAGS) -p forebay-benches
	$(PY) benches/python/operations.py

aims: binary python ## what forebay takes beside what this machine takes for its part, into docs/performance.md
	$(PY) benches/python/hardware.py --write

instructions: setup ## instructions of the hot operations, by callgrind, compared with those on record
	$(PY) ci/instructions.py

# The rivals live in an environment and a workspace of their own, under target/compare: the product's has none of them.
COMPARE     := $(TARGET)/compare
compare: ## forebay and its rivals side by side, into docs/performance.md; COMPARE_FLAGS="--quick", "--only NAME"
	@ci/venv.sh $(COMPARE)/venv benches/compare/requirements.txt
	@CARGO_TARGET_DIR=$(COMPARE)/client PYO3_PYTHON=$(COMPARE)/venv/bin/python ci/develop.sh $(COMPARE)/venv $(CURDIR)/python-client
	cargo build $(CARGO_FLAGS) --release --manifest-path benches/compare/rust/Cargo.toml --target-dir $(COMPARE)/rust
	$(COMPARE)/venv/bin/python benches/compare/run.py $(COMPARE_FLAGS)

# GPU_PYTHON=python3 takes an interpreter that has torch and forebay already, and makes no environment.
GPU         := $(TARGET)/gpu
GPU_PYTHON  ?=
gpu: ## on a machine with a GPU: its tests, then the benchmark into docs/gpu.md; without one says so; GPU_FLAGS="--quick"
ifeq ($(GPU_PYTHON),)
	@ci/venv.sh $(GPU)/venv benches/gpu/requirements.txt
	@CARGO_TARGET_DIR=$(GPU)/client PYO3_PYTHON=$(GPU)/venv/bin/python ci/develop.sh $(GPU)/venv $(CURDIR)/python-client
endif
	cd python-client && $(or $(GPU_PYTHON),$(GPU)/venv/bin/python) -m pytest -v tests/test_gpu_fake.py tests/test_gpu_absent.py tests/test_gpu_torch.py tests/test_gpu_real.py
	$(or $(GPU_PYTHON),$(GPU)/venv/bin/python) benches/gpu/run.py $(or $(GPU_FLAGS),--write)

INGEST      := $(TARGET)/compare-ingest
compare-ingest: ## ingest through forebay and through what users have now, into docs/ingest/README.md; INGEST_FLAGS="--quick", "--only NAME"
	@ci/venv.sh $(INGEST)/venv benches/ingest/requirements.txt
	@CARGO_TARGET_DIR=$(INGEST)/client PYO3_PYTHON=$(INGEST)/venv/bin/python ci/develop.sh $(INGEST)/venv $(CURDIR)/python-client/ingest
	cargo build $(CARGO_FLAGS) --release -p forebay-ingest --example encode_loop
	FOREBAY_ENCODE_LOOP=$(TARGET)/release/examples/encode_loop $(INGEST)/venv/bin/python benches/ingest/run.py $(INGEST_FLAGS)

SERVE       := $(TARGET)/compare-serve
compare-serve: binary ## forebay serve beside mosec, LitServe and FastAPI, into docs/serve-performance.md; SERVE_FLAGS="--quick", "--only NAME", "--soak MINUTES"
	@ci/venv.sh $(SERVE)/venv benches/serve/requirements.txt
	@CARGO_TARGET_DIR=$(SERVE)/client PYO3_PYTHON=$(SERVE)/venv/bin/python ci/develop.sh $(SERVE)/venv $(CURDIR)/python-client
	cargo build $(CARGO_FLAGS) --release --manifest-path benches/serve/load/Cargo.toml --target-dir $(SERVE)/load
	$(SERVE)/venv/bin/python benches/serve/run.py $(SERVE_FLAGS)

docs: ## API documentation of the published libraries, with all of their features
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps -p forebay -p forebay-ring -p forebay-layout \
		-p forebay-os -p forebay-ingest -p forebay-serve \
		--features forebay/cuda,forebay/ndarray,forebay/tokio,forebay-ingest/ring,forebay-serve/grpc

clean: ## removes what was built, and the environment
	rm -rf $(TARGET) dist .venv .pytest_cache
