# make eval         the paper's eight methods on the bundled miniature, and their table
# make test         the tests
# make test-quick   the quick tests of every folder
# make test-long    the tests that `make test` leaves out: a browser, a cluster, an installation, trainings
# make serve        the miniature as a server, with a page to try it
# make lint         ruff, mypy, and the rule of the layout
# make mutants      mutation testing of the formulas, some hours; a stopped run goes on
# make docs         the documentation as a site, in site/
# make wheel        the wheels of lora-retriever and peft-composition, in dist/
# make campaign     kills, signals, failing disks, bad inputs and fuzzing: some hours; figures in results/campaign
PYTHON ?= python3
BIN = .venv/bin

# Processes that run tests side by side: one for each core, at most four. All tests of a file run in one process.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The tests start many processes. Under this variable, each process would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: eval serve test test-quick test-long lint mutants docs wheel campaign
eval: .venv/installed
	bash eval_all.sh

serve: .venv/installed-serve
	$(BIN)/lora-retriever serve

test: .venv/installed-dev
	$(PYTEST) -m "not long"

test-quick: .venv/installed-dev
	$(PYTEST) -m "not slow and not long"

test-long: .venv/installed-dev
	$(PYTEST) -m long

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: .venv/installed-mutants
	$(BIN)/python scripts/mutants.py

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# setuptools would put what an earlier build left in build/ into the wheel.
wheel:
	rm -rf build peft/build
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist ./peft .

campaign: .venv/installed-dev
	$(BIN)/python scripts/run_campaign.py all

.venv/installed: requirements.txt setup.py peft/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e peft/ -r requirements.txt -e .
	touch $@

.venv/installed-serve: .venv/installed requirements-serve.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-serve.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-mutants: .venv/installed-dev requirements-mutants.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-mutants.txt
	touch $@

.venv/installed-docs: .venv/installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@
