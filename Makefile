# Every target works in a fresh checkout; `make help` lists them.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The system's interpreter, because one below a home directory can't be used by worker processes of other users.
PYTHON := $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo /usr/bin/python3 || echo python3)
VENV := .venv
DIR := $(CURDIR)
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
JOBS := 2
CODE := taskqueue tests benchmarks examples docs setup.py
FOUND := $(wildcard $(CODE))

.PHONY: help demo venv services lint check test test-long test-deb format html dist deb bench clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# From a copy, because pip builds in the tree; and all of it is gone afterwards.
demo: ## see it work, on the files below a directory: make demo DIR=/usr/share/doc
	@umask 022; PYTHON=$(PYTHON) tests/install-services python; \
	place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; trap 'exit 130' INT TERM HUP; \
	echo 'installing into a temporary directory'; \
	$(PYTHON) -m venv "$$place/venv"; \
	mkdir "$$place/copy"; cp -R taskqueue examples pyproject.toml setup.py README.md LICENSE "$$place/copy"; \
	"$$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
		"$$place/copy" "$$place/copy/examples/filestat"; \
	"$$place/venv/bin/taskqueue" demo '$(DIR)'

venv: $(STAMP) ## make the virtual environment .venv with everything that development needs

# The umask, because the tests run worker processes under other users, which must be able to read all of it.
$(STAMP): pyproject.toml setup.py
	umask 022; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is older than 3.11")'; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'; \
	touch $@

services:
	@umask 022; PYTHON=$(PYTHON) tests/install-services

lint: $(STAMP) ## form, lint and types
	$(BIN)/ruff format --check $(FOUND)
	$(BIN)/ruff check $(FOUND)
	$(BIN)/mypy

check: lint ## lint, and the tests that need no server and are quick
	umask 022; $(BIN)/python -m pytest -m 'not services and not daemons and not chaos and not long and not deb'

# By the file, for what a file's tests share.
test: services lint ## everything, against private servers; on Debian, root installs what is missing
	umask 022; TASKQUEUE_REQUIRE_SERVICES=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile

test-long: services $(STAMP) ## what takes many minutes: hostile messages, 20,000 workitems under fire, the distribution
	umask 022; TASKQUEUE_REQUIRE_SERVICES=1 $(BIN)/python -m pytest -m long

test-deb: $(STAMP) ## the Debian packages in a fresh Debian 12 with RabbitMQ, as root; upgrades from PREVIOUS=DIRECTORY
	@umask 022; PYTHON=$(PYTHON) tests/install-services test-deb
	umask 022; TASKQUEUE_REQUIRE_SERVICES=1 TASKQUEUE_PREVIOUS='$(abspath $(PREVIOUS))' $(BIN)/python -m pytest -m deb tests/deb

format: $(STAMP) ## put the code into its form
	$(BIN)/ruff format $(FOUND)
	$(BIN)/ruff check --fix-only $(FOUND)

html: $(STAMP) ## build the documentation into build/html
	rm -rf build/html
	$(BIN)/sphinx-build -W -E -q -b html docs build/html

dist: $(STAMP) ## build the source distribution and the wheel into dist/
	rm -rf dist
	umask 022; $(BIN)/python -m build --no-isolation

# From a copy, because dpkg-buildpackage writes beside the source tree.
deb: ## build the Debian packages into build/deb; root installs what that needs
	@tests/install-services deb
	rm -rf build/deb
	mkdir -p build/deb/source
	umask 022; tar -c --exclude-vcs --exclude='./.*_cache' --exclude=./.venv --exclude=./.hypothesis --exclude=./build \
		--exclude=./dist --exclude='*.egg-info' --exclude=__pycache__ . | tar -x --no-same-owner -C build/deb/source
	cd build/deb/source; dpkg-buildpackage -rfakeroot -us -uc
	rm -rf build/deb/source
	lintian --fail-on error,warning --info build/deb/*.changes

bench: services $(STAMP) ## measure: RabbitMQ's throughput, and SQLite's, PostgreSQL's and the client's beside their peers'
	umask 022; $(BIN)/python benchmarks/throughput.py; $(BIN)/python benchmarks/embedded.py; \
		$(BIN)/python benchmarks/postgresql.py; $(BIN)/python benchmarks/client.py

clean: ## remove what tests and builds leave behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf

distclean: clean ## remove the virtual environment, too
	rm -rf $(VENV)
