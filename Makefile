# Everything a newcomer types: `make quickstart` trains on real data, `make test` passes the tests.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
export JAX_COMPILATION_CACHE_DIR ?= $(or $(LPT_JAX_CACHE),$(HOME)/.cache/lpt_jax)/jax

# $(call install,FOLDER,ONE OR MORE PIP COMMANDS' ARGUMENTS IN QUOTES): an environment, or what is missing in plain words
define install
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "lpt_jax: Python 3.11, 3.12 or 3.13 is needed and was not found: install one, or say make $(MAKECMDGOALS) PYTHON=/path/to/python."; exit 1; }
	@echo "Installing into $(1) with $(PYTHON), once: a few minutes and about 2 GB; pip's log is $(1)/pip.log."
	@"$(PYTHON)" -m venv $(1) || { \
		echo "lpt_jax: $(PYTHON) can't make a virtual environment: install its venv module (Debian: apt install python3-venv)."; exit 1; }
	@: > $(1)/pip.log; for what in $(2); do \
		$(1)/bin/python -m pip install --disable-pip-version-check --no-input $$what >> $(1)/pip.log 2>&1 || { \
			package=$$(sed -n 's/.*No matching distribution found for //p' $(1)/pip.log | tail -1); \
			if [ -n "$$package" ]; then \
				echo "lpt_jax: the package $$package could not be had from PyPI: is this machine connected, and does pip know its proxy or index? See $(1)/pip.log."; \
			else \
				echo "lpt_jax: pip could not install $$what; the end of $(1)/pip.log says:"; tail -n 5 $(1)/pip.log; \
			fi; exit 1; }; \
	done
	@touch $@
endef

.PHONY: quickstart test tiny bench lint clean

quickstart: .venv/.installed  ## train on MovieLens-100k with SmolLM2 and MiniLM
	.venv/bin/python -m lpt_jax.data.carriers
	.venv/bin/python -m lpt_jax.main --config=configs/movielens.py

tiny: .venv/.installed  ## the same in a minute, with random tiny models and made-up data
	.venv/bin/python -m lpt_jax.main --config=configs/movielens.py:tiny

test: .venv-test/.installed  ## all tests; make test ARGS=tests/test_main.py runs some
	.venv-test/bin/python -m pytest -n $(WORKERS) $(ARGS)

bench: .venv-test/.bench  ## side by side with PyTorch and others, some hours; make bench ARGS=--cases=ranking runs some
	.venv-test/bin/python -m benchmarks.run $(ARGS)

lint: .venv-test/.installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

clean:  ## environments; runs/ and ~/.cache/lpt_jax stay
	rm -rf .venv .venv-test .pytest_cache .ruff_cache build dist *.egg-info

.venv/.installed: pyproject.toml setup.py
	$(call install,.venv,"-e .")

.venv-test/.installed: pyproject.toml setup.py  # torch, the models' oracle, comes first so that nothing pulls another build
	$(call install,.venv-test,"torch==2.13.0" "-e .[test]")

.venv-test/.bench: .venv-test/.installed
	@.venv-test/bin/python -m pip install --disable-pip-version-check --no-input "torch==2.13.0" -e ".[bench]" >> .venv-test/pip.log 2>&1 && touch $@ || \
		echo "lpt_jax: faiss-cpu could not be had (see .venv-test/pip.log): its comparisons are left out."
