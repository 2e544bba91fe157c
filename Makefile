# Every target makes its own virtual environment in .venv on first use; Python 3.11 with pip is all it needs.
# pip's usual settings decide where packages come from, and so whether torch is a CPU or a
# CUDA build; constraints.txt decides the versions. PYTHON=... picks another interpreter, VENV=... another folder.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python -m
TESTS ?=
WORKERS ?= 2

.PHONY: help demo test check format bench clean

help:
	@echo "make demo    train the camera-isolated re-identification demo and write its report"
	@echo "make test    run every test            (TESTS=tests/unit/models picks some)"
	@echo "make check   lint, format, types, direction of imports"
	@echo "make format  let ruff mend what it can"
	@echo "make bench   run every benchmark, named peers included"
	@echo "make clean   remove $(VENV), caches and builds; runs and worlds stay"

demo: $(VENV)/installed-simulation
	$(VENV)/bin/cloister run reid-ci --preset tiny

test: $(VENV)/installed-dev
	$(RUN) pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(TESTS)

check: $(VENV)/installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/installed-dev
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(VENV)/installed-bench
	@status=0; for name in $$($(VENV)/bin/python -c "from cloister.bench import BENCHES; print(*BENCHES)"); do \
		$(VENV)/bin/cloister bench $$name || status=1; \
	done; exit $$status

# One stamp per extra, so that the demo need not install the test tools. Written last: a broken install runs again.
$(VENV)/installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Cloister [$*] into $(VENV): once, a few minutes."
	@$(RUN) pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(VENV)/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Cloister needs Python 3.11, {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
