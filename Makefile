# `make run` and `make test` need only Python >= 3.11, make, and the package registry.
PYTHON ?= python3
BIN := .venv/bin
# In this order: the second takes the run that the first leaves.
NOTEBOOKS := session_8.ipynb save_to_hugging_face.ipynb

.PHONY: run test check nbval notebooks hub

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
	S8_DATA=synthetic HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -p no:cacheprovider --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 900 $(addprefix build/nbval/,$(NOTEBOOKS))

# Renews the stored outputs; look at what changed before you commit it.
notebooks: .venv/installed
	S8_DATA=synthetic $(BIN)/python tools/notebooks.py store $(NOTEBOOKS)

# Everything that talks to a Hub, with the oldest client that is allowed and with the newest; one core is enough.
HUB_TESTS := $(addprefix tests/test_,hub.py local_hub.py card.py saved.py models.py data.py demo.py) \
	tests/test_notebooks.py::test_a_run_from_drive_is_published_and_what_a_stranger_gets_is_the_runs_best
hub: .venv/installed .venv-oldest-hub/installed
	for python in .venv-oldest-hub/bin/python $(BIN)/python; do \
		$$python -c "import huggingface_hub as hub; print('huggingface_hub', hub.__version__)" \
		&& OMP_NUM_THREADS=1 $$python -m pytest -q -p no:cacheprovider $(HUB_TESTS) || exit 1; \
	done

# An old client over the packages of .venv, which it is found before.
.venv-oldest-hub/installed: .venv/installed
	$(PYTHON) -m venv .venv-oldest-hub
	.venv-oldest-hub/bin/python -m pip install --quiet "huggingface_hub==1.27.*"
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(echo .venv-oldest-hub/lib/python*/site-packages)/beneath.pth"
	touch $@

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@
