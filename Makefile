PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test lint docs screenshots bench catalogues lock

help:
	@echo 'make run     install what is missing, and start JupyterHub on http://127.0.0.1:8000'
	@echo 'make test    install what is missing, lint, and run every test (ARGS="-k form" picks some)'
	@echo 'make lint    check the style and types'
	@echo 'make docs    build the handbook into docs/_build/html'
	@echo 'make screenshots  take the pictures of the handbook anew'
	@echo 'make bench   measure'
	@echo 'make catalogues  bring the translations up to date with the sentences in the code'
	@echo 'make lock    renew the locks in requirements/ and package-lock.json'
	@echo 'PYTHON=python3.12 chooses another Python than python3.'

run:
	@$(PYTHON) -m scripts.run

# The second run has the oldest packages that we say we work with.
test: .setup-test lint
	@$(PYTHON) -m scripts.root .venv/bin/python -m pytest $(ARGS)
	.venv-oldest/bin/python -m pytest -m "not engine and not browser" $(ARGS)

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
