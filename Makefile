# `make demo` and `make test` need only Python >= 3.11 and make: each sets up all of its own job in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

.PHONY: demo test check bench prove docs lock clean system

demo: $(VENV)/.demo
	@$(BIN)/marram demo $(ARGS)

# Three at a time, on two cores as well: for a third of its time a test waits for a disk, a process or a clock.
test: $(VENV)/.dev system
	@$(BIN)/python -m pytest -n 3 --dist loadgroup $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev
	@$(BIN)/python -m bench $(ARGS)

# Power cuts, full disks, attacks, a fleet, bad links: one JSON line. ARGS=--small for a sample, ARGS=attacks for a part.
prove: $(VENV)/.dev system
	@$(BIN)/python -m marram.lab.prove $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "docs: build/docs/index.html"

define LOCK
import json
chosen = {i["metadata"]["name"].lower().replace("_", "-"): i["metadata"]["version"].split("+")[0] for i in json.load(open("build/lock/report.json"))["install"]}
print("# The exact versions the Makefile installs; `make lock` makes this file.")
print("\n".join(f"{name}=={version}" for name, version in sorted(chosen.items()) if name != "marram"))
endef
export LOCK

# The exact versions: resolve everything that `all` may install, keep what pip chose.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet --dry-run --ignore-installed --report build/lock/report.json 'torch==2.13.0' '.[all]'
	$(PYTHON) -c "$$LOCK" > constraints.txt

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Marram needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing what the demo needs (once)"
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

# torch first: a later package asking for "torch" then finds the pinned one and brings no other.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing what the tests need (once)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# A browser, an MQTT broker and strace (power cuts) for the tests that drive them; without root they are skipped, saying so.
system:
	@for program in chromium chromedriver mosquitto strace; do PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium, mosquitto and strace (once)"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver mosquitto strace; } >/dev/null 2>&1 \
	      || echo "chromium, mosquitto and strace could not be installed (apt-get failed): tests that need them are skipped"; \
	  else echo "chromium, chromedriver, mosquitto or strace is missing: tests that need them are skipped (apt-get install chromium chromium-driver mosquitto strace)"; fi; \
	fi

clean:
	rm -rf $(VENV) build demo
