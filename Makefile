# aclam: every target makes .venv first where it is missing or out of date; the stamp makes a second call start at once.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHON

MINUTES ?= 60

# On a machine without a GPU the CPU build of PyTorch is looked for: make TORCH_INDEX=URL says where, TORCH_INDEX= nowhere.

.PHONY: help demo test test-slow fuzz book bench export lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole story on two CPU cores: render, train, compare; ends in runs/demo/report.html"
	@echo "make test    notebooks clean, in sync, tested; pytest with coverage; lint"
	@echo "make test-slow  what takes long: kills of labels and rollouts, launched ranks, compilers, whole studies"
	@echo "make fuzz    random bad inputs over every reader and option, for MINUTES=60; what is found is kept for the tests"
	@echo "make book    the notebooks as a web site that needs no network: _docs/site/index.html"
	@echo "make bench   what things cost on this machine, as a table"
	@echo "make export  notebooks to modules, texts of --help and README.md, after editing a notebook"
	@echo "make lock    requirements.in to requirements.lock, after editing the former"
	@echo "make clean   remove what the other targets made, except .venv and runs/"

$(STAMP): requirements.lock setup.py settings.ini pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh $(VENV)

demo: $(STAMP)
	@$(BIN)/aclam-demo

test: $(STAMP)
	@$(BIN)/python tools/check.py

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

fuzz: $(STAMP)
	@$(BIN)/python tools/fuzz.py --minutes $(MINUTES) --keep

book: $(STAMP)
	@$(BIN)/python site/build.py

bench: $(STAMP)
	@$(BIN)/python bench/run.py

export: $(STAMP)
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python tools/help_texts.py
	@$(BIN)/python site/readme.py

lock: $(STAMP)
	@$(BIN)/python tools/lock.py

clean:
	rm -rf _docs _proc build dist *.egg-info .coverage .coverage.* .pytest_cache .ruff_cache
	rm -f nbs/_quarto.yml nbs/nbdev.yml nbs/sidebar.yml
	find aclam nbs tests tools bench site -name __pycache__ -type d -prune -exec rm -rf {} +
