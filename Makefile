# What this project can do with itself. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

WASM_TARGET := wasm32-wasip2
GUESTS := $(notdir $(patsubst %/,%,$(dir $(wildcard guest-plugins/*/Cargo.toml))))
TEST_GUESTS := $(notdir $(patsubst %/,%,$(dir $(wildcard tests/guests/*/Cargo.toml))))
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PYTHON := .venv/bin/python

.PHONY: help run test bench check guests test-guests wasm-target test-tools fmt clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

run: guests ## Build everything and show the demo
	cargo run --package pulse-notifier -- demo --once

test: test-tools guests test-guests ## Install what the tests need and run them all
	cargo fmt --all --check
	cargo build --workspace $(addprefix --exclude ,$(GUESTS) $(TEST_GUESTS))
	cargo test
	cargo clippy --all-targets -- --deny warnings

bench: test-tools guests ## Measure, each figure as a ratio within one run; ONLY=ab for some of them
	cargo build --release --package pulse-notifier
	cargo bench --package end-to-end -- $(ONLY)

check: wasm-target ## Only what a compiler can say: formatting and lints
	cargo fmt --all --check
	cargo clippy --all-targets -- --deny warnings
	cargo clippy --target $(WASM_TARGET) $(addprefix --package ,$(GUESTS) $(TEST_GUESTS)) -- --deny warnings

guests: wasm-target ## Build the plugins into plugins/
	cargo build --target $(WASM_TARGET) --profile guest $(addprefix --package ,$(GUESTS))
	mkdir -p plugins
	for guest in $(GUESTS); do install -m 644 $(TARGET_DIR)/$(WASM_TARGET)/guest/$${guest//-/_}.wasm plugins/.$$guest.new; mv plugins/.$$guest.new plugins/$${guest//-/_}.wasm; done

test-guests: wasm-target
	cargo build --target $(WASM_TARGET) --profile guest $(addprefix --package ,$(TEST_GUESTS))

.PHONY: bless
bless: guests ## Make the golden cases of all plugins expect what comes of them now; look at the difference
	cargo build --package pulse-notifier
	for guest in $(GUESTS); do $(TARGET_DIR)/debug/pulse-notifier plugin test guest-plugins/$$guest/cases --wasm plugins/$${guest//-/_}.wasm --bless; done

wasm-target:
	@rustup target list --installed | grep -qx $(WASM_TARGET) || rustup target add $(WASM_TARGET)

# The real servers that tests start for themselves, and promtool: from Debian; an SMTP server: from PyPI.
DEBIAN_PACKAGES := rabbitmq-server prometheus ngircd influxdb
test-tools:
	@dpkg --status $(DEBIAN_PACKAGES) > /dev/null 2>&1 || { \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(DEBIAN_PACKAGES); }
	@cmp -s tests/requirements.txt .venv/installed.txt || { \
	  python3 -m venv --clear .venv && $(PYTHON) -m pip install --quiet --requirement tests/requirements.txt && \
	  cp tests/requirements.txt .venv/installed.txt; }

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove everything that was built
	cargo clean
	rm -rf plugins .venv
