# Everything a person runs by hand. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SEEDS  ?= 10000
SERVERS := .venv-servers
PEERS   := .venv-peers
# onnxruntime's, which is on as it comes
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint coverage simulate bench bench-dispatch bench-core bench-store bench-engine bench-predict evaluate-demo-model \
        train-demo-model train-demo-addons evaluate-localisation train-localisation docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-30s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Atelier needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,redis,s3,dev]'
	@touch $@

$(SERVERS)/.ready: tests/servers.txt
	@$(PYTHON) -m venv $(SERVERS) && \
	  $(SERVERS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/servers.txt && touch $@ || \
	  echo "The servers that models are fetched from cannot be installed: the tests against them are skipped."

demo: $(READY)  ## set everything up and generate a picture with the shipped model
	@$(BIN)/atelier generate "a red circle on a white background" --local --guidance 4 --seed 7 -o demo.png

test: $(READY) $(SERVERS)/.ready  ## set everything up and run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)  ## the checks that take minutes: a hundred pictures each
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(READY)  ## the tests with branch coverage; the core must have 95 %
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html
	$(BIN)/coverage report --include='orchestrator/core/*' --fail-under=95

simulate: $(READY)  ## the scheduler under faults: make simulate SEEDS=10000
	$(BIN)/python scripts/simulate.py --seeds $(SEEDS)

bench: bench-dispatch bench-core bench-store bench-engine bench-predict  ## all benchmarks

bench-dispatch: $(READY)  ## jobs per second through the orchestrator, beside raw ZeroMQ
	$(BIN)/python -m scripts.bench.dispatch

bench-core: $(READY)  ## the cost of an event against queue length and fleet size
	$(BIN)/python -m scripts.bench.core_scale

bench-store: $(READY)  ## accepted jobs per second, beside raw SQLite
	$(BIN)/python -m scripts.bench.store

bench-engine: $(READY)  ## what the step engine costs and gains, beside stock diffusers (7 GB of memory)
	$(BIN)/python -m scripts.bench.engine

bench-predict: $(READY) $(PEERS)/.ready  ## predictions a second, beside Mosec, LitServe and onnxruntime alone
	$(BIN)/python -m scripts.bench.predict --peers $(PEERS)/bin/python

$(PEERS)/.ready: scripts/bench/peers/requirements.txt
	@$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

evaluate-demo-model: $(READY)  ## 100 fresh prompts: how often are colours, shapes, places and outlines right?
	$(BIN)/python -m scripts.demo_model.evaluate base
	$(BIN)/python -m scripts.demo_model.evaluate controlnet
	$(BIN)/python -m scripts.demo_model.evaluate lora --guidance 2

train-demo-model: $(READY)  ## train the demo model anew (about 1.5 hours on two cores)
	$(BIN)/python -m scripts.demo_model.train base

train-demo-addons: $(READY)  ## train its ControlNet and LoRA anew (about an hour on two cores)
	$(BIN)/python -m scripts.demo_model.train addons

evaluate-localisation: $(READY)  ## the localisation model's errors in metres, and whether its ellipses hold
	$(BIN)/python -m scripts.localisation.evaluate

train-localisation: $(READY)  ## train the localisation model anew (about 20 minutes on one core)
	$(BIN)/python -m scripts.localisation.train

docs: $(READY)  ## generate the tables of the spec and the state diagram anew
	$(BIN)/python -m scripts.spec_tables
	$(BIN)/python -m scripts.doc_tables

clean:  ## remove what the targets made
	rm -rf $(VENV) $(SERVERS) $(PEERS) .pytest_cache .mypy_cache .ruff_cache htmlcov .coverage build *.egg-info demo.png
