# Everything a developer or CI runs. Each target sets up what it needs.
#
#   make run     the daemon in the foreground, without root, everything under .run/
#   make test    all tests, linters and type checks
#   make bench   the benchmark; writes .run/bench.md
#   make clean   forget the virtual environment, builds and .run/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(CURDIR)/.run
ARCH := $(shell uname -m)
METRICS ?= 127.0.0.1:9178

.DELETE_ON_ERROR:
.PHONY: run test check unit bench system clean

# --- the daemon, on the embedded store ------------------------------------------------------------------------------

run: $(VENV)/.run-stamp $(RUN)/bin/ipamd
	@exec $(BIN)/ipamd run --demo --node "$$(hostname | tr A-Z a-z)" \
	  --socket $(RUN)/ipamd.sock --state-dir $(RUN)/state --store embedded --metrics-address $(METRICS) \
	  --default-pools-ipv4-cidr 192.168.0.0/16 --default-pools-ipv6-cidr fd00:10:244::/64

$(RUN)/bin/ipamd: ipamd/cni/bin/ipamd-cni-$(ARCH) $(VENV)/.run-stamp
	@mkdir -p $(RUN)/bin
	@$(BIN)/ipamd install-cni $(RUN)/bin --as ipamd calico-ipam host-local >/dev/null
	@touch $@

# --- tests ----------------------------------------------------------------------------------------------------------

test: system $(VENV)/.dev-stamp ipamd/cni/bin/ipamd-cni-$(ARCH)
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory unit

check: $(VENV)/.dev-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev-stamp ipamd/cni/bin/ipamd-cni-$(ARCH)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: system $(VENV)/.dev-stamp ipamd/cni/bin/ipamd-cni-$(ARCH)
	@mkdir -p $(RUN)
	$(BIN)/python -m tests.bench --output $(RUN)/bench.md

# The few parts that PyPI does not have: installed when root on a Debian-like system, else named by the tests.
system:
	@tests/system.sh

# --- set-up ---------------------------------------------------------------------------------------------------------

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "ipamd needs Python 3.11 to 3.13; name one, as in: make PYTHON=python3.12 run"; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# What running needs: the dependencies, the compiler of the plugin, the package itself in place.
$(VENV)/.run-stamp: pyproject.toml | $(VENV)/bin/pip
	@$(BIN)/pip install -q --disable-pip-version-check hatchling editables ziglang
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

ipamd/cni/bin/ipamd-cni-$(ARCH): ipamd/cni/ipamd-cni.c ipamd/cni/build.py | $(VENV)/.run-stamp
	@$(BIN)/python ipamd/cni/build.py
	@touch $@

clean:
	rm -rf $(VENV) $(RUN) ipamd/cni/bin build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
