# Two products, one environment. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# A process per core, each of one thread, takes whole files: what a file's tests share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test setup lint types bench
setup: $(STAMP)
$(STAMP): constraints.txt grafting/pyproject.toml meningitis/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e './meningitis[dev]' -e './grafting[dev]'
	touch $(STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: setup
	$(BIN)/mypy meningitis/src grafting/src
test: lint types
	$(PYTEST) meningitis/tests
	$(PYTEST) grafting/tests
bench: setup
	$(BIN)/meningitis benchmark
demo: setup
	$(BIN)/meningitis study --out out/meningitis
	$(BIN)/grafting run demo --out out/grafting --resume
	@echo "An epidemic:  $(CURDIR)/out/meningitis/report.html"
	@echo "A graft:      $(CURDIR)/out/grafting/report.html"
	@echo "All pages:    $(CURDIR)/demo.html"
