# make quickstart: the main job on a real small model. make test: all tests. Both set up what they need in .venv.
PYTHON ?= python3
# The CPU build of torch serves everything here; TORCH_INDEX names another package index to take torch from.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
RUN ?= runs/quickstart

BIN := .venv/bin
MODEL := models/smollm2-135m-instruct

.PHONY: quickstart test setup model check clean

quickstart: model
	$(BIN)/xlr run xlr/recipes/quickstart.yaml run_dir=$(RUN)

test: .venv/.tests model
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.tests

.venv/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[quickstart]"
	touch $@

.venv/.tests: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[quickstart,test]"
	touch $@

model: $(MODEL)/model.safetensors

$(MODEL)/model.safetensors: | .venv/.installed
	$(BIN)/python -m xlr.recipes.quickstart.fetch_model $(MODEL)

clean:
	rm -rf .venv build *.egg-info runs models
