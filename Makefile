# make try: a word heard without torch.  make demo: real speech through the whole path.  make test: what CI runs.  make quick: its fast part.  make fuzz: odd inputs.
# make docs: the documentation as a site, build/site/index.html.
# TORCH_INDEX chooses torch's wheels, for example TORCH_INDEX=https://download.pytorch.org/whl/cpu (plain `torch` on
# Linux brings gigabytes of CUDA). By default pip's own configuration decides.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PIP_FLAGS = -q -c constraints.txt --disable-pip-version-check
BIN = $(VENV)/bin
VERSION := $(shell sed -n 's/.*"\(.*\)"/\1/p' _version.py)

.PHONY: demo try test quick fuzz lint docs soak wheels clean

demo: $(VENV)/installed
	@echo "Building in out/demo, some five minutes the first time; a build that was stopped goes on where it was."
	$(BIN)/prunella build reference --target x86-cpu --healed reference-pruned -o out/demo
	@echo; echo "prunella eval out/demo/pruned-int4 --speech examples/clips/evaluation.jsonl --show --clip librivox_0870 --clip librivox_0880 --clip librivox_0930 --clip goforward"; echo
	@$(BIN)/prunella eval out/demo/pruned-int4 --speech examples/clips/evaluation.jsonl --show --clip librivox_0870 --clip librivox_0880 --clip librivox_0930 --clip goforward
	@echo; echo "Now yours:  $(BIN)/prunella transcribe out/demo/pruned-int4 FILE"
	@echo "            $(BIN)/prunella listen out/demo/pruned-int4    (a microphone)"
	@echo "            $(BIN)/prunella serve out/demo/pruned-int4     (a page and an API)"

test: $(VENV)/installed-dev .venv-device/installed lint
	PRUNELLA_DEVICE_PYTHON=$(CURDIR)/.venv-device/bin/python $(BIN)/python tests/in_two.py

# What a change is tried with: no real model, nothing native, nothing slow; about 90 s on two cores.
quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow and not native and not model"

# Files and frames that nobody would write, so many of each kind; `make test` tries 1000. What fails lies in build/fuzz.
FUZZ ?= 100000
fuzz: $(VENV)/installed-dev
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -s -p no:cacheprovider tests/fuzz

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typecheck && ln -sfn ../.. build/typecheck/prunella
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p prunella
	$(BIN)/lint-imports

# Strict: a link that leads nowhere, or an option's page that cannot be made, is an error. Offline, once installed.
docs: $(VENV)/installed-docs
	@mkdir -p build/typecheck && ln -sfn ../.. build/typecheck/prunella
	$(BIN)/python docs/pictures.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q
	@echo "build/site/index.html; with its search:  $(PYTHON) -m http.server -d build/site"

# Live for a long time: 30 minutes of speech, a busy decoder in real time, an overload. SOAK_BUNDLE is what `make demo` makes.
SOAK_BUNDLE ?= out/demo/pruned-int4
soak: $(VENV)/installed
	$(BIN)/python -m prunella.benchmark.live.soak $(SOAK_BUNDLE) \
		--speech examples/clips/evaluation.jsonl examples/clips/calibration.jsonl

# What a device installs, a bundle to hear a word with, and the embedded models, which no device needs.
# setuptools would pack what an earlier build left.
MADE = $(firstword $(wildcard out/demo/pruned-int4/bundle.json) out/ready/pruned-int4/bundle.json)
BUNDLE = build/ready_bundle/prunella_bundle/reference-pruned-int4
wheels: $(MADE)
	rm -rf build/lib build/bdist.* embedded_models/build build/ready_bundle
	@mkdir -p build && cp -R ready_bundle build/ && rm -rf $(BUNDLE) && cp -R $(dir $(MADE)) $(BUNDLE)
	$(PYTHON) -m pip wheel -q --disable-pip-version-check --no-deps -w dist . ./embedded_models ./build/ready_bundle

out/ready/pruned-int4/bundle.json: | $(VENV)/installed
	$(BIN)/prunella export reference-pruned --target x86-cpu --recipe int4 -o $(@D)

# As on a device: runtime and bundle from dist/ in an environment of their own. Making the bundle takes torch, using it does not.
TRY = .venv-try/bin/prunella
try: .venv-try/installed
	@echo; echo "prunella transcribe examples/clips/evaluation/goforward.flac"
	@$(TRY) transcribe examples/clips/evaluation/goforward.flac
	@echo; echo "Now yours:  $(TRY) transcribe FILE"
	@echo "            $(TRY) listen    (a microphone)"
	@echo "            $(TRY) serve     (a page and an API, http://127.0.0.1:8000/)"

WHEEL = $(VERSION)-py3-none-any.whl
.venv-try/installed: $(wildcard dist/prunella-$(WHEEL) dist/prunella_bundle-$(WHEEL))
	@[ $(words $^) = 2 ] || $(MAKE) wheels
	$(PYTHON) -m venv --clear .venv-try
	.venv-try/bin/pip install $(PIP_FLAGS) 'dist/prunella-$(WHEEL)[cpu,serve]' dist/prunella_bundle-$(WHEEL)
	@touch $@

# torch goes first and alone, so that TORCH_INDEX decides where it comes from.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing torch and the rest into $(VENV), then converting the embedded models: some three minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install $(PIP_FLAGS) -e '.[build,baseline,serve]'
	$(BIN)/prunella models fetch
	@touch $@

# llama-cpp-python among them, which is built from source: some minutes.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install $(PIP_FLAGS) -e '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install $(PIP_FLAGS) -e '.[docs]'
	@touch $@

# What a device has: the runtime and one engine, no torch. A test runs `prunella transcribe` in it.
.venv-device/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-device
	.venv-device/bin/pip install $(PIP_FLAGS) -e '.[cpu]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-device .venv-try build dist out
