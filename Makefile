# What this project can do with itself. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

WASM_TARGET := wasm32-wasip2
GUESTS := $(notdir $(patsubst %/,%,$(dir $(wildcard guest-plugins/*/Cargo.toml))))
TEST_GUESTS := $(notdir $(patsubst %/,%,$(dir $(wildcard tests/guests/*/Cargo.toml))))
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PYTHON := .venv/bin/python

.PHONY: help run test bench check guests test-guests examples wasm-target test-tools fmt clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

run: guests ## Build everything and show the demo
	cargo run --package pulse-notifier -- demo --once

test: test-tools guests test-guests examples ## Install what the tests need and run them all
	cargo fmt --all --check
	# With the tests: alone, the service would have its dependencies built for it once more, with other features.
	cargo build --bins --tests
	cargo test
	cargo clippy --all-targets -- --deny warnings

bench: test-tools guests examples ## Measure, each figure as a ratio within one run; ONLY=ab for some of them
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

# Each by a tool of its own, whose version stands in its folder; made again only when something in it has changed.
EXAMPLES := javascript-mail python-mail
EXAMPLE_FILES := $(foreach example,$(EXAMPLES),$(TARGET_DIR)/examples/$(subst -,_,$(example)).wasm)
TOOLS := $(TARGET_DIR)/examples/tools
WIT := $(wildcard wit/*.wit)

examples: $(EXAMPLE_FILES) ## Build the plugins in JavaScript and Python into target/examples/

$(TARGET_DIR)/examples/javascript_mail.wasm: guest-plugins/javascript-mail/mail.js $(WIT) $(TOOLS)/javascript-mail/made
	$(TOOLS)/javascript-mail/node_modules/.bin/componentize-qjs --wit wit --world mailer --sync --js $< --output $@.new
	mv $@.new $@

# Without WASI: its sockets are nothing that a plugin may import.
$(TARGET_DIR)/examples/python_mail.wasm: guest-plugins/python-mail/mail.py $(WIT) $(TOOLS)/python-mail/made
	$(TOOLS)/python-mail/bin/componentize-py --quiet --wit-path wit --world mailer componentize --stub-wasi --python-path $(<D) --output $@.new mail
	mv $@.new $@

$(TOOLS)/javascript-mail/made: guest-plugins/javascript-mail/package-lock.json
	@command -v npm > /dev/null || $(call install,npm)
	mkdir -p $(@D)
	cp $(<D)/package.json $< $(@D)
	npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund
	touch $@

$(TOOLS)/python-mail/made: guest-plugins/python-mail/requirements.txt
	@python3 -c 'import ensurepip' 2> /dev/null || $(call install,python3-venv)
	python3 -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

.PHONY: bless
bless: guests examples ## Make the golden cases of all plugins expect what comes of them now; look at the difference
	cargo build --package pulse-notifier
	for guest in $(GUESTS); do $(TARGET_DIR)/debug/pulse-notifier plugin test guest-plugins/$$guest/cases --wasm plugins/$${guest//-/_}.wasm --bless; done
	for example in $(EXAMPLES); do $(TARGET_DIR)/debug/pulse-notifier plugin test guest-plugins/$$example/cases --wasm $(TARGET_DIR)/examples/$${example//-/_}.wasm --bless; done

define install
{ sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
  $$sudo apt-get update; \
  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(1); }
endef

wasm-target:
	@rustup target list --installed | grep -qx $(WASM_TARGET) || rustup target add $(WASM_TARGET)

# The real servers that tests start for themselves, and promtool: from Debian; an SMTP server: from PyPI.
DEBIAN_PACKAGES := rabbitmq-server prometheus ngircd influxdb
test-tools:
	@dpkg --status $(DEBIAN_PACKAGES) > /dev/null 2>&1 || $(call install,$(DEBIAN_PACKAGES))
	@python3 -c 'import ensurepip' 2> /dev/null || $(call install,python3-venv)
	@cmp -s tests/requirements.txt .venv/installed.txt || { \
	  python3 -m venv --clear .venv && $(PYTHON) -m pip install --quiet --requirement tests/requirements.txt && \
	  cp tests/requirements.txt .venv/installed.txt; }

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove everything that was built
	cargo clean
	rm -rf plugins .venv
