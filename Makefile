# One command each; `make help` lists them. Works with GNU make 3.81 (macOS) and later.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON    ?= python3
CORES     ?= 2
ifneq ($(filter reference,$(MAKECMDGOALS)),)
PROFILE   ?= laptop
endif
PROFILE   ?= fast
EXECUTOR  ?= local
TABLES    ?=
EXTRAS    ?=
LOCKED    ?=
PIP_ARGS  ?=
NOTEBOOKS ?=
# What a user says is never a part of a command, to make or to a shell: it reaches both as the value of a variable.
SAID := PYTHON CORES PROFILE EXECUTOR TABLES EXTRAS LOCKED PIP_ARGS NOTEBOOKS
$(foreach name,$(SAID),$(eval override $(name) := $$(value $(name))))
export $(SAID)

VENV := .venv
BIN  := $(VENV)/bin
comma := ,
empty :=
space := $(empty) $(empty)
ALLOWED := $(shell sed -n '/optional-dependencies/,/^\[tool/s/^\([a-z]*\) = .*/\1/p' pyproject.toml)
ASKED := $(sort $(subst $(comma), ,$(EXTRAS)))
ifneq ($(filter-out $(ALLOWED),$(ASKED)),)
$(error EXTRAS takes some of $(ALLOWED), with commas between them, and not '$(EXTRAS)')
endif
ifneq ($(filter-out 1,$(LOCKED)),)
$(error LOCKED takes 1 or nothing, and not '$(LOCKED)')
endif
ifneq ($(if $(LOCKED),$(ASKED)),)
$(error LOCKED=1 installs what requirements.lock holds, and that is none of the EXTRAS)
endif
REQUIRED := $(if $(LOCKED),--require-hashes -r requirements.lock,-r requirements.txt)
# One stamp per set of extras: asking for more of them installs again.
STAMP := $(VENV)/.installed$(if $(LOCKED),-locked)$(if $(ASKED),-$(subst $(space),-,$(ASKED)))

SITE_VENV  := .venv-site
SITE_STAMP := $(SITE_VENV)/.installed
SUPPLY_VENV  := .venv-supply
SUPPLY_STAMP := $(SUPPLY_VENV)/.installed

# One thread in everything that is compared; two notebooks or tests run side by side instead.
RUN_ENV = PATH="$$PWD/$(BIN):$$PATH" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \
	PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 JUPYTER_PREFER_ENV_PATH=1 \
	$(if $(filter gpu,$(PROFILE)),,CUDA_VISIBLE_DEVICES=)

# An environment, of a Python that is new enough: $(call new_venv,FOLDER)
define new_venv
@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' 2>/dev/null || { \
	echo "Python 3.11.5 or later is needed; '$$PYTHON' is $$("$$PYTHON" --version 2>/dev/null || echo not there)."; \
	echo "Name another one with PYTHON=python3.11"; exit 1; }
@test -x $(1)/bin/python || "$$PYTHON" -m venv $(1) || { \
	echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
@echo "Installing into $(1): a few minutes the first time"
endef

.PHONY: help install reproduce test torture test-slurm reference refresh bench lab site lock audit clean

help: ## this list
	@echo "make TARGET [PYTHON=python3.11] [CORES=2] [PROFILE=fast|laptop|gpu] [EXECUTOR=local|slurm|kubernetes]"
	@echo "     [EXTRAS=llm,chess] [LOCKED=1] [PIP_ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-12s %s\n' "$$name" "$$text"; done
	@echo
	@echo "PIP_ARGS goes to pip as it is: an index that holds the CPU build of PyTorch, for example."
	@echo "LOCKED=1 installs only files whose hash stands in requirements.lock: PyPI's, for Linux x86-64."

install: $(STAMP) ## make .venv and install the exact versions of requirements.txt into it

$(STAMP): requirements.txt pyproject.toml $(if $(LOCKED),requirements.lock)
	$(call new_venv,$(VENV))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$PIP_ARGS $(REQUIRED)
	@# setuptools is pinned above, so the package itself is built without fetching anything.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$PIP_ARGS -c requirements.txt \
		--no-build-isolation -e ".$(if $(ASKED),[$(subst $(space),$(comma),$(ASKED))])"
	@touch $(VENV)/.installed $(STAMP)

reproduce: $(STAMP) ## run every notebook (PROFILE=fast: minutes on a laptop CPU); called again it goes on or does nothing
	@$(RUN_ENV) python workflow/reproduce.py "$$PROFILE" "$$CORES" "$$EXECUTOR"

test: $(STAMP) ## lint, unit tests, every notebook from scratch, its metrics and committed outputs; the site
	@$(RUN_ENV) tests/run "$$CORES"

torture: $(STAMP) ## kills, damage, full disks, odd folders and wrong words: a table of attempts and survivors
	@$(RUN_ENV) TORTURE=1 pytest -q -n "$$CORES" -m fault tests/torture tests

test-slurm: ## two notebooks and two tables as jobs of a Slurm cluster, started on this machine for it
	@$(MAKE) --no-print-directory install EXTRAS=slurm
	@$(RUN_ENV) tests/slurm/run

reference: $(STAMP) ## remake the tables in data/reference/, all or TABLES="levels joint" (goes on where it was stopped)
	@$(RUN_ENV) python workflow/reference.py "$$PROFILE" "$$CORES" "$$EXECUTOR" $$TABLES

refresh: $(STAMP) ## execute the notebooks, write their outputs back without times and noise, renew README's tables
	@$(RUN_ENV) python workflow/refresh.py $$NOTEBOOKS
	@$(RUN_ENV) python workflow/readme.py

bench: $(STAMP) ## measure kernels, training, recovery, what pruning saves, how cost grows, into data/reference/bench*.csv
	@$(RUN_ENV) python tests/bench/automata.py
	@$(RUN_ENV) python tests/bench/training.py
	@$(RUN_ENV) python tests/bench/recovery.py
	@$(RUN_ENV) python tests/bench/pruning.py
	@$(RUN_ENV) python tests/bench/real.py
	@$(RUN_ENV) python tests/bench/scale.py

$(SITE_STAMP): site/requirements.txt requirements.txt
	$(call new_venv,$(SITE_VENV))
	@$(SITE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$PIP_ARGS -r site/requirements.txt
	@touch $(SITE_STAMP)

site: $(SITE_STAMP) ## build the site, with all notebooks as they are committed, into build/site/html
	@OMP_NUM_THREADS=1 $(SITE_VENV)/bin/python site/build.py

lab: $(STAMP) ## open the notebooks in JupyterLab
	@PATH="$$PWD/$(BIN):$$PATH" jupyter lab --notebook-dir=notebooks

$(SUPPLY_STAMP): tests/supply/requirements.txt
	$(call new_venv,$(SUPPLY_VENV))
	@$(SUPPLY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$PIP_ARGS -r $<
	@touch $@

lock: $(SUPPLY_STAMP) ## renew requirements.lock from requirements.txt
	@PATH="$$PWD/$(SUPPLY_VENV)/bin:$$PATH" tests/supply/lock

audit: $(SUPPLY_STAMP) ## ask which pinned versions have known vulnerabilities
	@PATH="$$PWD/$(SUPPLY_VENV)/bin:$$PATH" python tests/supply/audit.py

clean: ## remove caches and the results of tests; your other results in runs/ and the environments stay
	rm -rf runs/test runs/test-slurm .pytest_cache .ruff_cache .hypothesis .snakemake build *.egg-info lib/*.egg-info
	find lib tests workflow site -name __pycache__ -type d -prune -exec rm -rf {} +
