# `make run` and `make test` need only Python >= 3.11, make, and the package registry.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := session_8.ipynb

.PHONY: run test check nbval notebooks

run: .venv/installed
	$(BIN)/python tools/notebooks.py run session_8.ipynb

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) nbval

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs the notebooks in an empty folder, on the stand-in data, and compares their outputs with the stored ones.
nbval: .venv/installed
	rm -rf build/nbval && mkdir -p build/nbval
	cp -r results $(NOTEBOOKS) build/nbval
	S8_DATA=synthetic $(BIN)/python -m pytest -p no:cacheprovider --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 900 build/nbval

# Renews the stored outputs; look at what changed before you commit it.
notebooks: .venv/installed
	S8_DATA=synthetic $(BIN)/python tools/notebooks.py store $(NOTEBOOKS)

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@
