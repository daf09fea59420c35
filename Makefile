# Puna's targets; each does its own set-up. `make help` lists them.
PY := .venv/bin/python
unexport PYTHONDONTWRITEBYTECODE  # images of containers set it: each process would compile torch once more
.PHONY: help setup test test-lowest coverage wheel quick quick-learning quick-others process engine gpu demo check bench-cycles bench-console bench-train bench-ranks bench-serve bench-sickness bench-coldstart bench-engine bench-batch docs openapi home mutate clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/ready  ## make .venv once, and again when pyproject.toml or constraints.txt change
.venv/ready: pyproject.toml constraints.txt scripts/setup scripts/sources.sh
	@bash scripts/setup

test: setup check process quick  ## everything that CI runs but the demo
LEARNING := $(addprefix tests/,data demo merge train worker/app/test_concurrency.py worker/engines worker/openai)  # what loads torch
QUICK := OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not process and not engine and not gpu"
quick: setup  ## tests without real processes: under a minute; what loads torch in one process, all else in two
	@$(MAKE) --no-print-directory -k -j 2 -O quick-learning quick-others
quick-learning:
	$(QUICK) $(LEARNING)
quick-others:
	$(QUICK) -n 2 --dist worksteal tests $(addprefix --ignore=,$(LEARNING))
JOBS ?= 4
process: setup  ## tests with real processes, JOBS=4 at once, then those that measure; says the slowest, and what it skips and why
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=25 \
		-m "(process or engine or gpu) and not alone"
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=25 -m "(process or engine or gpu) and alone"
engine: setup  ## the tutorial's app on a real vLLM on CPU: installs 3 GB
	PUNA_ENGINE_TESTS=1 $(PY) -m pytest -q -m engine tests/engine
gpu: setup  ## tests that need an NVIDIA GPU
	$(PY) -m pytest -q -m gpu tests/gpu
test-lowest:  ## the quick part with the oldest releases that pyproject.toml allows, in .venv-lowest
	@bash scripts/lowest $(ARGS)
coverage: setup  ## how much of src/puna the tests run, by package; fails under pyproject's bound; ARGS="tests/serve" for a part
	@bash scripts/coverage $(ARGS)
wheel: setup  ## build dist/puna-*.whl, and try it: whole, installs offline, serves
	@bash scripts/wheel
check: setup  ## ruff, mypy strict, oxlint over the console
	@$(PY) -m ruff check . && $(PY) -m mypy && .venv/bin/oxlint --quiet src/puna/console

demo: setup  ## the whole story on a tiny Llama
	@$(PY) -m puna demo

bench-train: setup  ## Puna, TRL and Unsloth on this GPU, one model, the same rows: writes bench/train-<gpu>.json
	PYTHONPATH=src $(PY) bench/train.py $(ARGS)
bench-ranks: setup  ## one run on one GPU and on two: ARGS="--ranks N"; writes bench/ranks-<gpu>.json
	PYTHONPATH=src $(PY) bench/ranks.py $(ARGS)
bench-serve: setup  ## Puna and its peers with a no-op app on this machine's CPUs: writes bench/serve-<machine>.json
	PYTHONPATH=src $(PY) bench/serve.py $(ARGS)
bench-coldstart: setup  ## a request to an endpoint at zero, with and without a zygote: writes bench/coldstart-<machine>.json
	PYTHONPATH=src $(PY) bench/coldstart.py $(ARGS)
bench-engine: setup  ## a real vLLM by tier, beside `vllm serve`: ARGS="--python ..." names an interpreter that has it
	PYTHONPATH=src $(PY) bench/engine.py $(ARGS)
bench-batch: setup  ## OpenAI on transformers: unequal callers beside equal ones, and a short call behind a long one
	OMP_NUM_THREADS=1 PYTHONPATH=src $(PY) bench/batch.py $(ARGS)
bench-sickness: setup  ## gateways, control plane and replicas stopped, hung, deadlocked, ten times each: writes bench/sickness-<machine>.json
	PYTHONPATH=src $(PY) bench/sickness.py $(ARGS)
bench-cycles: setup  ## 1,000 cycles of waking and scaling to zero, 200 deploys, and what is left: writes bench/cycles-<machine>.json
	PYTHONPATH=src $(PY) bench/cycles.py $(ARGS)
bench-console: setup  ## the console with 200 endpoints and 100,000 log lines in Chromium: writes bench/console-<machine>.json
	PYTHONPATH=src $(PY) bench/console.py $(ARGS)
home: setup  ## the fixture home of a version, made by its own code: ARGS="v0.2.0" writes tests/homes/0.2.0-of-<date>.tar.gz
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) scripts/old_home.py $(ARGS)
mutate: setup  ## change behaviour in 200 small ways, say which no test sees: ARGS="--changed main", "--modules puna.serve"
	@$(PY) scripts/mutate.py $(ARGS)
docs: setup  ## write the generated parts of README and docs again
	$(PY) scripts/docs.py
openapi: setup  ## write the API's golden document again, after a change of it that is meant
	PUNA_WRITE_GOLDEN=1 $(PY) -m pytest -q tests/control/api/test_openapi.py -k golden
clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-lowest .pytest_cache .mypy_cache .ruff_cache
