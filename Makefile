# uproar: `make serve` runs it, `make test` proves it. `make` alone lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# What a change of means that the environment is made anew.
INPUTS := requirements.txt pyproject.toml setup.py $(wildcard $(addprefix _fastpath/*.,pyx pxd c h))
ARGS   ?=
PYTEST := $(BIN)/python -m pytest
SUITES := unit conformance integration metrics browser chaos

.DEFAULT_GOAL := help
.PHONY: conformance fuzz schemathesis screenshot help setup packages serve test $(addprefix test-,$(SUITES)) chromium lint fmt bench wheel models clean clean-data stack-up stack-down test-stack java prometheus balancers test-stack-full test-reference bench-stack

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

# --- to run it ---

setup: $(STAMP)  ## make the environment in .venv

$(STAMP): $(INPUTS)
	@$(MAKE) --no-print-directory packages
	@echo "making the environment in $(VENV) (about a minute)"
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# What the system must bring: checked one by one, installed where we are root.
packages:
	@missing=""; \
	need() { missing="$$missing $$1"; echo "missing: $$1 ($$2)" >&2; }; \
	if ! command -v $(PYTHON) >/dev/null; then \
	  need python3 "Python 3.11 or newer"; need python3-venv "virtual environments"; \
	  need python3-dev "Python's headers"; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is older than 3.11: install a newer one and run make PYTHON=python3.11" >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || need python3-venv "virtual environments"; \
	  $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    || need python3-dev "Python's headers"; \
	fi; \
	command -v $${CC:-cc} >/dev/null || { need gcc "a C compiler"; need libc6-dev "the C library's headers"; }; \
	finds() { echo "#include <$$1>" | $${CC:-cc} -E -x c - >/dev/null 2>&1; }; \
	finds zlib.h || need zlib1g-dev "zlib, which compresses"; \
	better=""; \
	[ "$${UPROAR_ISAL:-}" = 0 ] || finds isa-l.h || better="libisal-dev"; \
	if [ -z "$$missing$$better" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  [ -z "$$better" ] || echo "not found: $$better (compresses faster for few viewers); built without it" >&2; \
	  [ -n "$$missing" ] || exit 0; \
	  echo "install these Debian packages and start again: sudo apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing:$$missing $$better"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq || [ -z "$$missing" ] || exit 1; \
	[ -z "$$missing" ] || apt-get install -y -qq --no-install-recommends $$missing || exit 1; \
	[ -z "$$better" ] || apt-get install -y -qq --no-install-recommends $$better \
	  || echo "$$better can't be had here; built without it" >&2

serve: $(STAMP)  ## run everything on this machine with a demo stream (ARGS="--port 9000")
	$(BIN)/uproar serve --demo $(ARGS)

# --- to work on it ---

test: $(STAMP) $(addprefix test-,$(SUITES))  ## run all tests (ARGS="-k name" narrows)

# Runs pytest with (1), the variables (2) set. It answers 5 where no test fits: nothing failed. With
# AGAIN=1, what failed is run once more: these tests start real servers and kill them, and on a machine
# that is busy with something else one of thousands may miss a deadline. What fails twice has failed.
define run-tests
	@$(2) $(PYTEST) $(1) $(ARGS) || { code=$$?; \
	  if [ $$code -eq 5 ]; then exit 0; fi; \
	  if [ $$code -ne 1 ] || [ -z "$(AGAIN)" ]; then exit $$code; fi; \
	  echo "== once more, what failed"; $(2) $(PYTEST) $(1) --lf --lfnf=none $(ARGS); }
endef

define run-suite
	@echo "== tests/$(1)"
	$(call run-tests,tests/$(1) -m "not stack")
endef

test-unit: $(STAMP)  ## functions and processes of one module, in seconds
	$(call run-suite,unit)

test-conformance: $(STAMP)  ## both adapters of a role, both codecs, against the same vectors
	$(call run-suite,conformance)

test-integration: $(STAMP)  ## a whole system, driven by clients
	$(call run-suite,integration)

# What faces the engine, once more on the other one.
ON_REFERENCE := $(addprefix tests/integration/test_,\
  handshake.py bad_input.py deflate.py room.py sse.py replay.py)

test-reference: $(STAMP)  ## the engine's integration tests on the reference engine
	@echo "== tests of the reference engine"
	$(call run-tests,$(ON_REFERENCE) -m "not stack",UPROAR_ENGINE=reference)

test-browser: $(STAMP) chromium  ## the page in a real Chromium
	$(call run-suite,browser)

test-chaos: $(STAMP)  ## processes killed while comments are played
	$(call run-suite,chaos)

test-metrics: $(STAMP) prometheus  ## metrics, alerts and dashboard, before a real Prometheus
	$(call run-suite,metrics)

# Unpacked, not installed: Debian's package would start a server of its own.
prometheus:
	@if command -v prometheus >/dev/null && command -v promtool >/dev/null; then exit 0; fi; \
	if [ -x build/prometheus/usr/bin/prometheus ]; then exit 0; fi; \
	mkdir -p build/prometheus; cd build/prometheus; \
	get() { apt-get download -qq prometheus 2>/dev/null; }; \
	if command -v apt-get >/dev/null && { get || { apt-get update -qq && get; }; } \
	  && dpkg -x prometheus_*.deb . ; then \
	  rm -f prometheus_*.deb; echo "unpacked: prometheus (for the tests of metrics and alerts)"; \
	else \
	  echo "missing: prometheus and promtool; their tests are skipped: sudo apt-get install prometheus" >&2; \
	fi

# --- the servers of a scaled-out system, on loopback: `python -m deploy.stack --help` ---

stack-up: $(STAMP) java  ## fetch and start Kafka, Cassandra and a Valkey cluster (ARGS="kafka" one)
	@$(BIN)/python -m deploy.stack up $(ARGS)

stack-down: $(STAMP)  ## stop them; their data stays in build/stack/run
	@$(BIN)/python -m deploy.stack down $(ARGS)

# Whole systems on them: every comment in one order, and the table of roles and acts.
ON_STACK := $(addprefix tests/integration/test_,replay.py room.py moderation.py)

test-stack: $(STAMP) java balancers  ## conformance, chaos and the table of roles on real servers, started for it
	@echo "== tests on Kafka, Cassandra and a Valkey cluster"
	$(call run-tests,tests/conformance tests/chaos $(ON_STACK) -m "stack and not long",UPROAR_TEST_STACK=1)

test-stack-full: $(STAMP) java balancers  ## the same and what takes long: three brokers, three nodes, TLS, SSE
	@echo "== all tests on Kafka, Cassandra and a Valkey cluster"
	@UPROAR_TEST_STACK=1 $(PYTEST) tests/conformance tests/chaos $(ON_STACK) \
	  tests/integration/test_sse.py -m stack $(ARGS)

bench-stack: $(STAMP) java  ## measure on embedded engines and on real servers (ARGS="--seconds 10")
	@$(BIN)/python -m benchmarks.stack $(ARGS)

java:
	@if command -v java >/dev/null && command -v mvn >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing: java and maven (for Kafka and Cassandra)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless maven; \
	else \
	  echo "missing: java or mvn: sudo apt-get install openjdk-17-jre-headless maven" >&2; exit 1; \
	fi

balancers:
	@missing=""; \
	for name in haproxy nginx; do PATH="$$PATH:/usr/sbin" command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing:$$missing (for the tests of several hosts)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else \
	  echo "missing:$$missing; the tests of several hosts are skipped: sudo apt-get install$$missing" >&2; \
	fi

chromium:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing: chromium (for the browser tests)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
	  echo "missing: chromium; the browser tests are skipped: sudo apt-get install chromium" >&2; \
	fi

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure, results into benchmarks/results (ARGS picks the questions)
	$(BIN)/python -m benchmarks --out benchmarks/results $(ARGS)

# Where the linear model's weights come from; in the repository lies what this makes.
models:  ## read the linear model's weights out of their package, again
	rm -rf build/models
	$(PYTHON) -m venv build/models
	build/models/bin/python -m pip install --quiet --disable-pip-version-check alt-profanity-check==1.9.1
	build/models/bin/python deploy/extract_linear.py
	rm -rf build/models

conformance: $(STAMP)  ## the Autobahn cases against the engine, by hand
	@$(BIN)/python -c 'import kosoku' 2>/dev/null || $(BIN)/python -m pip install --quiet kosoku==0.1.0
	$(BIN)/python -m benchmarks.conformance $(ARGS)

SECONDS ?= 60
fuzz: $(STAMP)  ## random bytes for everything that reads them (SECONDS=60 each, ARGS="reactor")
	@command -v clang >/dev/null || [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null \
	  || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang libclang-rt-14-dev >/dev/null \
	  || echo "clang can't be had here: the inputs are changed without looking at coverage" >&2
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

schemathesis: $(STAMP)  ## property tests of the REST API, by hand
	$(PYTHON) -m venv build/schemathesis
	build/schemathesis/bin/python -m pip install --quiet schemathesis==4.32.5
	SCHEMATHESIS=$(CURDIR)/build/schemathesis/bin/schemathesis $(PYTEST) tests/integration/test_openapi.py

screenshot: $(STAMP) chromium  ## docs/screenshot-room.png anew, from a running demo
	$(BIN)/python -m tests.browser.screenshot docs/screenshot-room.png

# A wheel goes to other machines, so it has in it nothing of this processor and needs no library that
# may be missing there; UPROAR_NATIVE=1 makes one for machines like this.
wheel: $(STAMP)  ## build a wheel into dist/ (UPROAR_NATIVE=1: for this machine's processor)
	rm -rf dist build/lib.* build/bdist.*
	UPROAR_ISAL=$(if $(filter-out 0,$(UPROAR_NATIVE)),,0) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache tests/artifacts
	rm -f _fastpath/*.so
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

clean-data:  ## remove the data directory `data`: all comments and the signing key
	@if [ -e data/lock ] && command -v flock >/dev/null && ! flock --nonblock data/lock true; then \
	  echo "data is in use by process $$(cat data/lock): stop it first" >&2; exit 1; fi
	rm -rf data
