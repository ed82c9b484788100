# `make run` and `make test` need only Python >= 3.11, make, and the package registry.
PYTHON ?= python3
BIN := .venv/bin
# In this order: the second takes the run that the first leaves.
NOTEBOOKS := session_8.ipynb save_to_hugging_face.ipynb

.PHONY: run test check nbval notebooks floors door

run: .venv/installed
	$(BIN)/python tools/notebooks.py run session_8.ipynb

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5
	$(MAKE) nbval

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs the notebooks in an empty folder, on the stand-in data, and compares their outputs with the stored ones.
nbval: .venv/installed
	rm -rf build/nbval && mkdir -p build/nbval
	cp -r results $(NOTEBOOKS) build/nbval
	S8_DATA=synthetic S8_DEVICE=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -p no:cacheprovider --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 900 $(addprefix build/nbval/,$(NOTEBOOKS))

# Renews the stored outputs; look at what changed before you commit it.
notebooks: .venv/installed
	S8_DATA=synthetic S8_DEVICE=cpu $(BIN)/python tools/notebooks.py store $(NOTEBOOKS)

# All tests with the oldest versions that pyproject.toml allows. Those know Python 3.11 and 3.12 only: where python3 is
# a newer one, `make floors PYTHON=python3.11`.
floors: .venv-floors/installed
	OMP_NUM_THREADS=1 .venv-floors/bin/python -m pytest -p no:cacheprovider -n 3 --dist loadfile --no-loadscope-reorder

# Both notebooks as newcomers open them, on a fake Colab, a fake Kaggle and in plain Jupyter, where nothing is installed.
door: .venv-door/installed
	.venv-door/bin/python tools/door.py

.venv-door/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-door
	.venv-door/bin/python -m pip install --quiet torch torchvision ipykernel ipywidgets nbclient pexpect
	.venv-door/bin/python -m pip list --format=freeze > $@

.venv-floors/installed: pyproject.toml tools/floors.py
	$(PYTHON) -m venv --clear .venv-floors
	$(PYTHON) tools/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/python -m pip install --quiet -e ".[test]" -r .venv-floors/floors.txt
	touch $@

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@
