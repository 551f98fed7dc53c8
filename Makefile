# setup: a virtual environment with the pinned versions; test, lint: the checks; demo: compress a LeNet-5.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := runs/lenet5
FASHION := dataset-fashion-mnist

.PHONY: setup test lint demo clean

setup: $(STAMP)

# The pinned versions go in first, so that installing the project resolves nothing anew.
$(STAMP): pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements-dev.lock
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@

# A process of one thread for each core. What they take in turn, and in which order, is said in tests/conftest.py.
test: setup
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --dist loadgroup --no-loadscope-reorder

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# Run again after it was stopped, it goes on where it was; once finished, it shows the result again.
demo: setup
	@$(VENV)/bin/python -c 'import sys; from kogata.tasks.data import on_disk; sys.exit(on_disk("fashion-mnist", None) is None)' \
	|| if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Fashion-MNIST is not on this machine: installing the system package $(FASHION)"; \
		apt-get update -qq && apt-get install -y --no-install-recommends $(FASHION) \
		|| echo "apt-get could not install $(FASHION): trying a download instead"; \
	else echo "Fashion-MNIST is not on this machine: trying a download"; fi
	$(VENV)/bin/kogata compress fashion-lenet5 --recipe deep-compression -o $(RUN) $(if $(wildcard $(RUN)),--resume)
	@echo "Report: $(RUN)/report.html"

clean:
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
