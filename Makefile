# make demo: install, start the daemon in a scratch home, show the main job, stop it.
# make test: install what is missing, then lint, types, Rust and Python tests.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter of version 3.11 or newer on the PATH.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
RUST := $(shell find rust -name '*.rs' -o -name 'Cargo.toml' -o -name 'Cargo.lock' 2>/dev/null | grep -v /target/)

.PHONY: help install demo test lint rust-test sanitize wheel wheel-check clean
help:
	@grep -E '^# make' Makefile | cut -c3-

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one or set PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "error: no Rust toolchain found; install rustup or your system's cargo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(RUST) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

install: $(VENV)/.installed

demo: install
	@$(BIN)/python tests/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

rust-test: install
	cargo clippy --manifest-path rust/Cargo.toml --workspace --all-targets --release --locked -- -D warnings
	cargo test --manifest-path rust/Cargo.toml --workspace --release --locked -q

test: lint rust-test
	$(BIN)/python -m pytest

# make sanitize: the Rust tests under AddressSanitizer, with overflow checks; needs the nightly toolchain.
SANITIZED := -p aios_arrow_quant -p aios_arrow_storage -p aios_crc32c -p aios_frame_scanner -p aios_half \
	-p aios_vector_search -p aios_fast_tokenizer
sanitize:
	@cargo +nightly --version >/dev/null 2>&1 || { echo "skipped: no nightly toolchain; rustup toolchain install nightly"; exit 0; }; \
	set -x; CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=on -Coverflow-checks=on" \
	cargo +nightly test --manifest-path rust/Cargo.toml --release --target $$(rustc -vV | sed -n 's/host: //p') $(SANITIZED) \
		--target-dir rust/target/sanitize --no-fail-fast

# make wheel: a wheel and an sdist in dist/.
wheel: install
	$(BIN)/maturin build --release --locked --out dist
	$(BIN)/maturin sdist --out dist

# make wheel-check: install the wheel with all its dependencies into an empty environment and use it.
wheel-check: wheel
	AIOS_WHEEL_FULL=1 $(BIN)/python -m pytest tests/test_wheel.py

clean:
	rm -rf $(VENV) dist rust/target aios/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
