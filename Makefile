# Everything a developer or CI runs. Each target sets up what it needs.
#
#   make run     the daemon in the foreground, without root, everything under .run/
#   make test    all tests, linters and type checks
#   make demo    as root: a cluster of three nodes on this machine, shown in half a minute, and gone again
#   make e2e     as root, half an hour: real containers of a real containerd, through crashes, upgrades and reboots; the image
#   make bench   the benchmark, a quarter of an hour; writes .run/bench.md, .json and .svg; ROUNDS=100 is quicker, PARTS="starts ..."
#                leaves others out, CALICO_IPAM=path compares with Calico's own plugin
#   make soak    the simulation: SEEDS=n clusters with crashes, outages and lost messages
#   make soak-kill  KILLS=n times kill -9 of daemons under load, on real etcd, with the real plugin
#   make soak-outage  what befalls an etcd in a year, under real daemons: with an outage of PAUSE seconds
#   make soak-mixed  daemons beside Calico's own algorithm on one small pool: 10,000 operations
#   make scale   clusters of up to 10,000 nodes that all begin at once, in simulation; draws docs/scale.svg
#   make fuzz    REQUESTS=n each: hostile requests, starts of the plugin, damaged input of every parser; from SEED
#   make pages   what of docs/ is made: the pages of ipamctl of its help, the OpenAPI document of the routes, the pictures;
#                and the chart's dashboard
#   make docs    the pages of docs/ as a site in .run/site; a warning is an error
#   make release  wheel, source distribution, SBOM and checksums of the last commit, in dist/; always the same bytes
#   make release-test  that wheel on a Debian with nothing installed (root, debootstrap)
#   make newcomer-test  the README's commands, each with its seconds, on a Debian with nothing installed (root, debootstrap)
#   make clean   forget the virtual environment, builds and .run/

PYTHON ?= python3
METRICS ?= 127.0.0.1:9178
SEEDS ?= 2000
KILLS ?= 1000
REQUESTS ?= 1000000
ROUNDS ?= 1000
PARTS ?=
SEED ?= 1
PAUSE ?= 60
# Several processes, as many tests wait for real parts: for etcd to be back, for a daemon to start.
PYTEST_ARGS ?= -n 3 --dist worksteal

# Hundreds of processes start, each of which would compile this project's modules anew: 0.3 s of processor time.
unexport PYTHONDONTWRITEBYTECODE

# Relative, because make splits names at spaces and the checkout's path may have some.
VENV := .venv
BIN := $(VENV)/bin
RUN := .run
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation
PLUGIN := ipamd/cni/bin/ipamd-cni-$(shell uname -m)

.DELETE_ON_ERROR:
.PHONY: run test check unit demo bench soak soak-kill soak-outage soak-mixed scale fuzz pages docs release release-test newcomer-test system clean e2e

# --- the daemon, on the embedded store ------------------------------------------------------------------------------

# Without this machine's own configuration and name: neither must decide whether the first run works.
run: $(VENV)/.run-stamp $(RUN)/bin/ipamd
	@exec $(BIN)/python -m ipamd run --demo --config /dev/null --node demo --store embedded \
	  --socket "$(CURDIR)/$(RUN)/ipamd.sock" --state-dir "$(CURDIR)/$(RUN)/state" --metrics-address "$(METRICS)" \
	  --default-pools-ipv4-cidr 192.168.0.0/16 --default-pools-ipv6-cidr fd00:10:244::/64

$(RUN)/bin/ipamd: $(PLUGIN) $(VENV)/.run-stamp
	@mkdir -p $(RUN)/bin
	@$(BIN)/python -m ipamd install-cni $(RUN)/bin --as ipamd calico-ipam host-local >/dev/null

# --- tests ----------------------------------------------------------------------------------------------------------

test: system $(VENV)/.dev-stamp $(PLUGIN)
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory unit

check: $(VENV)/.dev-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev-stamp $(PLUGIN)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: system $(VENV)/.dev-stamp $(PLUGIN)
	@$(BIN)/python -m tests.demo

e2e: export IPAMD_E2E = 1
e2e: system $(VENV)/.dev-stamp $(PLUGIN)
	$(BIN)/python -m pytest -v --durations=0 --durations-min=1 tests/e2e

bench: system $(VENV)/.dev-stamp $(PLUGIN)
	@mkdir -p $(RUN)
	$(BIN)/python -m tests.bench --output $(RUN)/bench.md --rounds $(ROUNDS) $(if $(PARTS),--only $(PARTS))

soak: $(VENV)/.dev-stamp
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

soak-kill: $(VENV)/.dev-stamp $(PLUGIN)
	IPAMD_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -q -s tests/real/test_kill.py

soak-outage: $(VENV)/.dev-stamp $(PLUGIN)
	IPAMD_TEST_PAUSE=$(PAUSE) $(BIN)/python -m pytest -q -rP tests/real/test_etcd_trouble.py

soak-mixed: $(VENV)/.dev-stamp $(PLUGIN)
	IPAMD_MIXED_OPERATIONS=10000 $(BIN)/python -m pytest tests/calico/test_mixed_writers.py

scale: $(VENV)/.dev-stamp
	@$(BIN)/python -m tests.scale

fuzz: system $(VENV)/.fuzz-stamp $(PLUGIN)
	$(BIN)/python -m tests.fuzz parsers --requests $(REQUESTS) --seed $(SEED)
	$(BIN)/python -m tests.fuzz socket --requests $(REQUESTS) --seed $(SEED)
	$(BIN)/python -m tests.fuzz plugin --requests $(REQUESTS) --seed $(SEED)
	$(BIN)/python -m tests.fuzz sanitized --requests $$(($(REQUESTS) / 10)) --seed $(SEED)
ifeq ($(shell uname -m),x86_64)
	$(BIN)/python -m tests.fuzz guided --requests $(REQUESTS) --seed $(SEED)
endif
ifneq ($(shell command -v clang),)
	$(BIN)/python -m tests.fuzz guided-plugin --requests $(REQUESTS) --seed $(SEED)
endif

pages: $(VENV)/.dev-stamp
	$(BIN)/python -m ipamd.ctl.pages
	$(BIN)/python -m tests.docs.openapi
	$(BIN)/python -m tests.docs.pictures
	$(BIN)/python -m tests.helm.dashboard

docs: $(VENV)/.dev-stamp
	$(BIN)/python -m sphinx -q -n -W --keep-going -E docs $(RUN)/site

release: $(VENV)/.dev-stamp
	@$(BIN)/python -m release

release-test: release
	@release/bare-machine $(RUN)/bare dist

newcomer-test:
	@release/newcomer $(RUN)/bare

# The few parts that PyPI does not have: installed when root on a Debian-like system, else named by the tests.
system:
	@tests/system.sh

# --- set-up ---------------------------------------------------------------------------------------------------------

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "ipamd needs Python 3.11 to 3.13; name one, as in: make PYTHON=python3.12 run"; exit 1; }
	@echo "setting up $(VENV): takes minutes, once"
	@$(PYTHON) -m venv $(VENV)

# What running needs: what builds the plugin and packages that come as source, then this one in place. Without pip's
# isolated builds, which would fetch the compiler a second time.
$(VENV)/.run-stamp: pyproject.toml | $(VENV)/bin/pip
	@$(PIP) setuptools wheel hatchling editables ziglang
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.fuzz-stamp: $(VENV)/.dev-stamp
	@$(PIP) -e '.[fuzz]'
	@touch $@

$(PLUGIN): ipamd/cni/ipamd-cni.c ipamd/cni/build.py | $(VENV)/.run-stamp
	@echo "compiling the CNI plugin"
	@$(BIN)/python ipamd/cni/build.py
	@touch -c $@

clean:
	rm -rf $(VENV) $(RUN) ipamd/cni/bin build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
