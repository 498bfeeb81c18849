# Every target makes .venv and installs by itself. Needs Python 3.11 or newer, make and git; nothing is installed
# outside .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
BIN := .venv/bin
# Linear algebra on one thread a process: the tests run JOBS processes, and results do not depend on the machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo demo-real test evidence docs bench clean

help:
	@echo "make install   make .venv and install emlens with the pinned versions of constraints.txt"
	@echo "make demo      run the whole study on the embedded organism; writes report.html"
	@echo "make demo-real fetch a real model of 135M parameters, train three fine-tunes, study them; writes report-real.html"
	@echo "make test      lint, types and the fast tests (minutes)"
	@echo "make evidence  long measurements, written to docs/evidence/*.json, and slow tests (an hour)"
	@echo "make docs      build the documentation into site/; broken links and snippets fail"
	@echo "make bench     time capture, sampling, training and judging beside the plain way; writes nothing (minutes)"

# pip reads dependency groups from 25.1 on and pins build requirements from 25.3 on, so the one that came with Python is
# replaced first, inside .venv only.
.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "emlens needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "pip>=25.3"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable . --group dev
	@touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/emlens demo --out runs/demo
	@cp runs/demo/report.html report.html
	@echo "report.html is ready: open it in a browser"

demo-real: .venv/.installed
	$(BIN)/emlens real demo --out runs/demo-real
	@cp runs/demo-real/study/report.html report-real.html
	@echo "report-real.html is ready: open it in a browser"

test: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --durations=10

evidence: .venv/.installed
	$(BIN)/python -m benchmarks
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m slow --durations=10

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests/test_documentation.py tests/test_site.py

bench: .venv/.installed
	$(BIN)/python -m benchmarks.bench

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis site
