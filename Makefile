PYTHON ?= python3
ARGS ?=
NODES ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-unit test-all test-gpu lint docs screenshots bench catalogues lock

help:
	@echo 'make run     install what is missing, and start JupyterHub on http://127.0.0.1:8000'
	@echo '             (NODES=3 simulates so many machines with GPUs, as a Docker Swarm)'
	@echo 'make test    install what is missing, lint, and run the tests (ARGS="-k form" picks some)'
	@echo 'make test-unit  run those that need neither an engine nor a browser'
	@echo 'make test-all   run every test, each at length'
	@echo 'make test-gpu   try the GPUs of this machine, and print a report to paste (ARGS="--python FILE")'
	@echo 'make lint    check the style and types'
	@echo 'make docs    build the handbook into docs/_build/html'
	@echo 'make screenshots  take the pictures of the handbook anew'
	@echo 'make bench   measure'
	@echo 'make catalogues  bring the translations up to date with the sentences in the code'
	@echo 'make lock    renew the locks in requirements/ and package-lock.json'
	@echo 'PYTHON=python3.12 chooses another Python than python3.'

run:
	@NODES='$(NODES)' $(PYTHON) -m scripts.run

# Most tests wait for a container or a hub, so there are more workers than processors.
WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := -m pytest --numprocesses=$(WORKERS) --dist=loadgroup --no-loadscope-reorder --durations=25
NEITHER := not engine and not browser

test-unit: .setup-lint
	.venv/bin/python $(PYTEST) tests/unit $(ARGS)

# The second run has the oldest packages that we say we work with.
test: .setup-test lint
	@$(PYTHON) -m scripts.root .venv/bin/python $(PYTEST) $(ARGS)
	.venv-oldest/bin/python $(PYTEST) -m "$(NEITHER) and not same_on_oldest" $(ARGS)

test-all: .setup-test lint
	@$(PYTHON) -m scripts.root .venv/bin/python $(PYTEST) --all $(ARGS)
	.venv-oldest/bin/python $(PYTEST) --all -m "$(NEITHER)" $(ARGS)

# Needs nothing but Python and a driver, and installs the hub's own packages alone.
test-gpu:
	@$(PYTHON) -m scripts.gpu_report $(ARGS)

lint: .setup-lint
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# Without a network, and a warning is an error.
docs: .setup-docs
	.venv/bin/python -m sphinx -n -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo 'docs/_build/html/index.html'

screenshots: .setup-screenshots
	@$(PYTHON) -m scripts.root .venv/bin/python -m scripts.screenshots

bench: .setup-test
	@$(PYTHON) -m scripts.root .venv/bin/python -m bench $(ARGS)

catalogues: .setup-test
	@.venv/bin/python -m scripts.catalogue

lock:
	@$(PYTHON) -m scripts.lock

.PHONY: .setup-test .setup-lint .setup-docs .setup-screenshots
.setup-test .setup-lint .setup-docs .setup-screenshots: .setup-%:
	@$(PYTHON) -m scripts.setup $*
