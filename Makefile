# Each target alone needs Python 3.11 or later with its venv module; the rest it installs.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
PYTEST_ON_TWO_CORES := $(BIN)/python -m pytest -n 2 --dist worksteal
# Where it is set, as in many containers, every process would compile anew all that it imports.
export PYTHONDONTWRITEBYTECODE :=
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: quickstart test test-all test-long test-compile test-compile-gpu test-page test-peers test-installed faults lint docs docs-links dist clean

quickstart: .venv/train # train the small digits network to the end
	$(BIN)/python -m train.main --config configs/digits_resnet20.py

test: .venv/dev # run the tests of every promise
	$(PYTEST_ON_TWO_CORES)

test-all: test # and those that repeat them at greater cost
	$(PYTEST_ON_TWO_CORES) -m "slow and not long and not page"

test-long: .venv/dev # run the tests that take minutes each
	$(BIN)/python -m pytest -m long

test-compile: .venv/dev .venv/libtpu # run the tests that compile for TPUs; they need no TPU
	PYTHONPATH=.venv/libtpu $(BIN)/python -m pytest tests/train/test_compile.py tests/train/core/engine/test_compiled_bytes.py

test-compile-gpu: .venv/dev .venv/cuda # the same for GPUs; they need neither a GPU nor a driver
	PYTHONPATH=.venv/cuda $(BIN)/python -m pytest tests/train/test_compile_gpu.py tests/train/core/engine/test_compiled_bytes.py

test-peers: .venv/dev .venv/torch # run the tests of what benchmarks/ measures against, in PyTorch
	PYTHONPATH=.venv/torch OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/benchmarks -m "not long"

test-page: .venv/dev docs # open the report and the documentation in Chromium, which is installed where it is missing
	command -v chromium >/dev/null || $(AS_ROOT) sh -c 'apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core'
	$(BIN)/python -m pytest tests/train/report tests/docs -m page

test-installed: dist # run what users install where nothing else is: the wheel, an exported network
	.ci/installed

faults: .venv/dev # all of the tests that break things: killed runs, damaged files, wrong input
	$(BIN)/python -m pytest tests -m faults --hypothesis-profile=many

lint: .venv/dev # lint, formatting, the direction of imports, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: .venv/docs # make the documentation's site, build/html
	rm -rf build/html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/html

docs-links: .venv/docs # ask the addresses of others that the documentation names
	$(BIN)/sphinx-build --builder linkcheck docs build/links

dist: .venv/dev # build the wheel and the sdist, and check both
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --outdir dist . >build.log || { cat build.log; exit 1; }
	rm build.log
	$(BIN)/twine check --strict dist/*

clean: # remove the environment and what tools left behind
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

.venv/new: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: needs Python 3.11 or later, got " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	touch $@

# One call of pip for each: a second one, for dev on top of train, would look all packages up again.
# All of them hold what .venv/train does.
.venv/train: EXTRAS = train
.venv/dev: EXTRAS = train,dev
.venv/docs: EXTRAS = train,docs,page
.venv/train .venv/dev .venv/docs: .venv/new
	@echo "installing what is needed into .venv, which takes a minute or more"
	@$(INSTALL) -e '.[$(EXTRAS)]'
	touch .venv/train $@

# Apart from the rest: where JAX finds libtpu and no TPU, every start prints warnings.
.venv/libtpu: .venv/new | .venv/train
	rm -rf $@
	$(INSTALL) --no-deps --target $@ libtpu
	touch $@

# Apart as well: the other tests are of an environment without it.
.venv/torch: .venv/new | .venv/train
	rm -rf $@
	$(INSTALL) --target $@ torch
	touch $@

# And so are 0.5 GB that compile for GPUs, without the 4 GB that run on them.
.venv/cuda: .venv/new | .venv/train
	rm -rf $@
	jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
	$(INSTALL) --no-deps --target $@ jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax
	touch $@
