# make demo   build the demo model's bundles, compare full precision with int8, draw a sheet
# make test   lint, types and tests
# Both set up what they need in .venv. TORCH is what pip is asked for; PyPI's Linux build brings CUDA packages of
# several GB, so on such a machine point TORCH at a CPU wheel: make demo TORCH=path/or/url/of/torch-cpu.whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS ?=

.PHONY: demo test lint clean

demo: $(VENV)/.ready
	$(BIN)/nextscale demo $(DEMO_FLAGS)

test: lint
	$(BIN)/pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build && $(abspath $(BIN))/mypy --config-file ../pyproject.toml

# The strict mode lays a tree of links that type checkers can follow. A folder is newer when a file in it is new.
$(VENV)/.ready: pyproject.toml $(patsubst %,%/.,calib_data cli demo evaluate evaluate/peers export graph_passes runtime)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "setuptools>=77" wheel
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]" --config-settings editable_mode=strict
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info
