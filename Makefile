# From a bare clone: `make demo`, `make test`, and `make test-slow` for the tests that take long. They need python3 (3.11 or
# later), pip and make. On a machine with a GPU, `make gpu` measures what it has.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow gpu device lint types certify lab notebooks docs pictures size clean

.venv/lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

.venv/test: .venv/lab
	$(INSTALL) -e ".[test]"
	@touch $@

.venv/notebooks: .venv/lab
	$(INSTALL) -e ".[notebooks,docs,transformers]"
	@touch $@

demo: .venv/lab
	$(BIN)/sparsity-lab demo

lab: .venv/notebooks
	$(BIN)/jupyter lab notebooks $(OPTIONS)

notebooks: .venv/notebooks
	$(BIN)/python notebooks/execute.py

docs: .venv/notebooks
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs
	@echo "The site is in build/docs/index.html"

pictures: .venv/lab
	$(PYTHON) docs/architecture_picture.py
	$(BIN)/python docs/front_picture.py

size:
	@$(PYTHON) docs/size.py

test: .venv/test lint types
	$(PYTEST) -m "not slow"

test-slow: .venv/test
	$(PYTEST) -m slow

# What a GPU alone can tell: the tests marked "cuda", and the CUDA columns of the benchmarks.
gpu: device .venv/test
	$(BIN)/python -m pytest -m cuda
	@mkdir -p build benchmarks/cuda
	for name in kernels training generation; do \
	  $(BIN)/sparsity-lab bench $$name --device cuda --json > build/$$name.json \
	    && mv build/$$name.json benchmarks/cuda/$$name.json || exit 1; \
	done
	$(BIN)/python -m sparsity_lab.benchmarks.kernel_page

device:
	@$(if $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null)),true,$(error no CUDA device here, and nothing else to measure))

lint: .venv/test
	$(BIN)/ruff check sparsity_lab experiments tests docs notebooks
	$(BIN)/ruff format --check sparsity_lab experiments tests docs notebooks

types: .venv/test
	$(BIN)/mypy

certify: .venv/lab
	$(BIN)/sparsity-lab certify --all

clean:
	rm -rf .venv build dist
