# make quantize | test | fuzz | faults | bench-… | lint | docs | lock | clean. Needs Python 3.10 or later, and pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13 3.10,$(if $(shell python$(v) -c '' 2>&1 || echo no),,python$(v))) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

CHECKPOINT ?= examples/fashion_mnist/checkpoints/mobilenet_v2_x0_5.safetensors
ARCH ?= modcap.zoo:mobilenet_v2_x0_5

.PHONY: help env quantize test fuzz faults deployed check-gpu lint docs lock clean

help: ## Show the targets
	@sed -nE 's/^([a-z_-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

env: $(STAMP) ## Make the environment, with pip alone

$(STAMP): pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): some minutes, 2.5 GB'
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("modcap needs Python 3.10 or later: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster,docs,export,dev]'
	@touch $@

quantize: env ## Quantize the shipped MobileNetV2 x0.5 to W2A4, with everything that it needs
	$(BIN)/modcap quantize $(CHECKPOINT) --arch $(ARCH) --data fashion-mnist \
	  --w-bits 2 --a-bits 4 --method qdrop --capacity data-free --k auto --compare

test: env ## Run all tests, also those against real servers, but for faults
	$(BIN)/python -m pytest -n 2 --dist loadgroup

fuzz: env ## Read 20,000 mutated files, each within 2 GB and 30 s of CPU; INPUTS=, SECONDS=, SEED=, KINDS=
	$(BIN)/python -m tests.fuzz.run $(if $(INPUTS),--inputs $(INPUTS)) \
	  $(if $(findstring command,$(origin SECONDS)),--seconds $(SECONDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(KINDS),--kinds $(KINDS))

faults: env ## Kill every part of the system in mid-sweep, load a version in a fresh environment; about 15 minutes
	$(BIN)/python -m pytest -m 'fault or fresh'

deployed: env ## Start the services of Compose on hosts of their own and use them; needs root, fifteen minutes
	$(BIN)/python -m pytest -m deployed

bench-speed: ## Time reconstruction beside peers from PyPI; QUICK=1 is the short form
bench-fidelity: ## Every selection beside every other, at equal steps; QUICK=1, too
bench-waves: ## Groups side by side against one after another; QUICK=1, too
bench-scaling: ## One and two workers, and a simulation of many; QUICK=1, too
bench-memory: ## What jobs ask for in memory beside what they take; QUICK=1, too
bench-exports: ## ONNX and pt2 beside the artifacts, on all test images; QUICK=1, too
bench-runtime: ## Latency in onnxruntime beside float and its own quantization; QUICK=1, too
bench-integer_cost: ## What integer-only devices cost in accuracy; QUICK=1, too
bench-overhead: ## What orchestration costs; QUICK=1, too
bench-scan: ## A thousand small checkpoints in one scan; QUICK=1, too
bench-deployed: ## Memory, CPU and growth of the services of Compose; root; QUICK=1, too
bench-time_to_accuracy: ## Cheap recipes beside the published one, for hours; QUICK=1, too
bench-mixed: ## Bits of layers chosen against uniform ones, at equal bytes; QUICK=1, too
bench-natural: ## Networks with ImageNet weights on photographs of 224 pixels; QUICK=1, too
bench-breadth: ## Which networks of torchvision and timm are captured; QUICK=1, too
bench-%: env
	$(BIN)/python -m benchmarks.$* $(if $(QUICK),--quick) $(ARGS)

check-gpu: env ## Check the CUDA paths on one GPU, in eight minutes; ARGS='--device cpu --quick' without one
	$(BIN)/python -m benchmarks.check_gpu $(ARGS)

lint: env ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env ## Build the site of docs/ into build/site, warnings as errors; no network
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --quiet --strict

lock: env ## Write constraints.txt again, for all platforms, from pyproject.toml
	printf 'torch==2.13.0\ntorchvision==0.28.0\n' | $(BIN)/uv pip compile pyproject.toml - \
	  --universal --python-version 3.10 --all-extras --no-emit-index-url --no-annotate \
	  --custom-compile-command 'make lock' --output-file constraints.txt

clean: ## Remove the environment and caches; data in ~/.modcap stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
