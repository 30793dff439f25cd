# `make` alone prints what stands behind ## here.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two processes with a thread each: most of a test is Python, and two threads wait for each other. Files in their order:
# by the number of tests, the longest would come last, with one process at work.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
# What pyproject.toml leaves out because it is not released; Hydra 1.4 wants OmegaConf 2.4.
AHEAD := 'hydra-core>=1.4.0rc1' 'omegaconf>=2.4.1rc1'
# The files that have a mark: to read all tests takes a minute.
marked = -m $(1) $(sort $(shell grep -rl --include='*.py' 'mark\.$(1)\b' tests))
test test-floor test-ahead test-unsloth test-judge test-hub: export OMP_NUM_THREADS = 1

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "%-13s %s\n", $$1, $$2 }'

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing packages in $(VENV): 2.5 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	touch $@

install: $(VENV)/installed ## make .venv and install slimdown with what its tests need

demo: $(VENV)/installed ## fine-tune and measure the embedded pocket world; no download but packages
	$(BIN)/python -m slimdown.run

test: $(VENV)/installed ## the tests that need no network and no GPU
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# uv finds the oldest versions that go together. Old ones warn of what came after them, so warnings are no errors there.
.venv-floor/installed: RESOLUTION = lowest-direct
.venv-ahead/installed: RESOLUTION = highest --override $(@D)/ahead.txt
.venv-%/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	printf '%s\n' $(AHEAD) > $(@D)/ahead.txt
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip compile --quiet --resolution $(RESOLUTION) --extra dev --python $(@D)/bin/python \
		--output-file $(@D)/requirements.txt pyproject.toml
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --requirements $(@D)/requirements.txt
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --no-deps --editable .
	touch $@

test-floor: .venv-floor/installed ## the same on the oldest versions that pyproject.toml allows; TESTS=... for a part
	.venv-floor/bin/python -m pytest $(SIDE_BY_SIDE) -W default $(TESTS)

raise: ## run all tests on the newest versions of the day; if they pass, write constraints.txt and the ceilings
	$(PYTHON) -m tools.raise_versions

constraints: $(VENV)/installed ## write constraints.txt from what is installed in .venv; run `make check test` first
	$(BIN)/python -m tools.raise_versions --freeze $(BIN)/python

test-ahead: ## the same on what is not released yet (AHEAD), which the ranges of pyproject.toml leave out
	rm -f .venv-ahead/installed
	$(MAKE) .venv-ahead/installed
	.venv-ahead/bin/python -m pytest $(SIDE_BY_SIDE) -W default $(TESTS)

# Unsloth asks for older transformers and TRL than the newest, and so has an environment of its own.
.venv-unsloth/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet -e '.[dev,unsloth]'
	touch $@

test-unsloth: .venv-unsloth/installed ## the tests of train.engine=unsloth, with Unsloth's versions (4 GB)
	.venv-unsloth/bin/python -m pytest $(SIDE_BY_SIDE) -W default $(call marked,unsloth)

# Inspect asks for an older fsspec than the newest, so it stands in no other environment. Its tests need little.
.venv-inspect/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet -e '.[inspect]' pytest
	touch $@

test-inspect: .venv-inspect/installed ## the tests on Inspect's logs, with Inspect's own reader
	.venv-inspect/bin/python -m pytest --noconftest -o filterwarnings=default -m inspect tests/evaluation/test_inspect_logs.py

# What judges needs no torch, no MLflow and no Hydra, and neither do its tests, but those marked `heavy` and the card's.
JUDGE := tests/stats tests/judging tests/comparison tests/report tests/evaluation/test_samples.py \
	tests/evaluation/test_tool_logs.py tests/commands/test_verdict.py tests/test_light_install.py \
	--ignore=tests/report/test_model_card.py
.venv-judge/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet -e '.[dev-judge]' -c constraints.txt
	touch $@

test-judge: .venv-judge/installed ## the tests of what judges, in an environment without torch (0.5 GB): minutes
	.venv-judge/bin/python -m pytest $(SIDE_BY_SIDE) --noconftest -o filterwarnings=error -m 'not heavy and not slow and not install' $(JUDGE)

test-slow: $(VENV)/installed ## the tests that take minutes, and more cases of the others
	$(BIN)/python -m pytest $(call marked,slow)

lines: $(VENV)/installed ## how large the code is, by folder
	$(BIN)/python -m bench.lines

test-install: $(VENV)/installed ## the light install and the Action's steps in an empty environment, with pip
	$(BIN)/python -m pytest $(call marked,install)

test-postgres: $(VENV)/installed ## the tests on a real PostgreSQL, which they start themselves
	$(BIN)/python -m pytest $(call marked,postgres)

test-gpu: $(VENV)/installed ## training and measuring on a GPU beside stock libraries: ten minutes, no download; a table to paste
	$(BIN)/python -m pytest $(call marked,gpu)

test-hub: $(VENV)/installed ## the tests on real models and data; needs the hub, or HF_ENDPOINT set to a mirror
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(call marked,hub)

screens: $(VENV)/installed ## write tests/screens anew: what commands and pages say, to be read in the diff
	rm -f tests/screens/*.txt
	WRITE_SCREENS=1 $(BIN)/python -m pytest -q tests/test_screens.py

docs: $(VENV)/installed ## build the pages of docs/ into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check: $(VENV)/installed ## format, lint, types, that imports go down only, and the links of docs/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

ui: $(VENV)/installed ## MLflow's pages over the runs made so far, on http://127.0.0.1:5000
	$(BIN)/python -m slimdown ui

compare: $(VENV)/installed ## the runs made so far, side by side
	$(BIN)/python -m slimdown compare

bench: $(VENV)/installed ## evaluation and training against the stock tools, the statistics by simulation; needs the hub
	$(BIN)/python -m bench.evaluation
	$(BIN)/python -m bench.training
	$(BIN)/python -m bench.statistics

notebook: $(VENV)/installed ## run docs/examples/trl.ipynb and keep what it shows
	$(BIN)/python tests/test_example_notebook.py

pocket: $(VENV)/installed ## rebuild the embedded world's data, tokenizer and weights
	$(BIN)/python -m tools.pocket

.PHONY: help install demo docs lines screens test test-floor test-ahead test-unsloth test-inspect test-judge test-slow test-postgres test-gpu test-hub test-install check ui compare bench notebook pocket raise constraints
.DEFAULT_GOAL := help
