# `make` or `make help` lists the targets. Everything is installed into .venv beside this file.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Which extras of pyproject.toml a target needs; each is installed once, and again when the
# packages asked for have changed.
INPUTS  := pyproject.toml constraints.txt setup.py $(wildcard hf_adamp/optim/backends/cpu/csrc/*)
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
# Without what they ask for: of tinysoundfont, which renders the music of the audio recipe, only the
# player needs pyaudio, which has to be compiled against a sound library; torchattacks, the strong
# attacks of adversarial training, uses neither the torchvision nor the old requests that it names;
# arcade is there for its sprites, not for the old Pillow that it names; QtAwesome for its fonts, not
# for Qt.
WITHOUT_DEPENDENCIES := $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps \
    tinysoundfont torchattacks arcade QtAwesome

# Two processes share the cores, so each gets one thread. Tests never reach for a hub.
PYTEST  := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo paper-images test test-fast test-vision test-deepspeed versions sanitize wheels lint format bench docs clean demo-adversarial demo-audio demo-detection demo-rebias demo-retrieval demo-transformer-xl paper compare-transformer-xl

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

IMAGES := recipes/image_classification/launch/demo.sh

demo: $(VENV)/.demo ## AdamP beside AdamW, SGDP beside SGD on small real images; table and picture (5 min on 2 cores)
	PATH="$(abspath $(BIN)):$$PATH" bash $(IMAGES)

paper-images: $(VENV)/.demo ## the same over rates, decays, momenta and batches, five seeds; writes its page (half an hour)
	PATH="$(abspath $(BIN)):$$PATH" SIZE=full bash $(IMAGES)

test: $(VENV)/.dev ## run all tests
	$(PYTEST) -n 2

# What a change most likely breaks. The rest of the suite takes these to more shapes, to processes
# and to other packages, or trains recipes.
FAST := $(addprefix tests/optim/test_,arguments.py defaults.py library.py native.py plan.py \
    projection.py records.py refusals.py state_dict.py \
    equality.py::test_adamp_equals_the_paper_in_float64 \
    equality.py::test_sgdp_equals_the_paper_in_float64) tests/integration/test_options.py \
    tests/test_architecture.py tests/test_param_groups.py tests/test_repository.py

test-fast: $(VENV)/.dev ## a minute: what a change most likely breaks
	$(PYTEST) -n 2 -m 'not slow' $(FAST)

# A copy of the package, its kernel built to check every access to memory and every operation that
# C leaves undefined, and to end the process at the first that is wrong. The checks' runtimes have to
# come before Python's memory. Leaks are left out: what Python keeps until its end would count.
SANITIZED := build/sanitize
SANITIZED_CPU := $(SANITIZED)/hf_adamp/optim/backends/cpu

sanitize: $(VENV)/.dev ## the C kernel's tests under AddressSanitizer and UndefinedBehaviorSanitizer; needs gcc (4 min)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -R hf_adamp $(SANITIZED)
	find $(SANITIZED) -name '_native*' -delete
	gcc -std=gnu11 -O1 -g -fno-omit-frame-pointer -fopenmp-simd -fsanitize=address,undefined \
	    -fno-sanitize-recover=undefined -shared -fPIC $(SANITIZED_CPU)/csrc/kernel.c -lm \
	    -o $(SANITIZED_CPU)/_native.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 $(PYTEST) -n 2 -o "pythonpath=$(SANITIZED) ." \
	    $(addprefix tests/optim/test_,library.py native.py determinism.py layouts.py low_precision.py)

test-vision: $(VENV)/vision/.done ## the tests that need torchvision and timm, in an environment of their own (5 GB)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/vision/bin/python -m pytest \
	    tests/recipes/image_classification tests/recipes/object_detection

test-deepspeed: $(VENV)/deepspeed/.done ## the tests with the real DeepSpeed, in an environment of its own (1.3 GB, 12 min)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/deepspeed/bin/python -m pytest tests/optim/zero

versions: $(VENV)/.dev ## the package's tests with other versions of torch and Transformers; writes docs/versions.md (an hour)
	$(BIN)/python tools/versions.py $(SETS)

lint: $(VENV)/.dev ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff format and repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## time a step beside torch's and other packages'; writes docs/performance.md
	PYTHONPATH=$(VENV)/bench $(BIN)/python -m tests.benchmarks --family adamp sgdp --memory 18 \
	    --output --plot docs/step-time.png
	$(BIN)/python -m tests.benchmarks --family adamp sgdp --shapes gpt2-medium tiny --brief \
	    --memory 20 --output

# Strict: a broken link, a page that no page leads to or a public name without a docstring fails.
docs: $(VENV)/.docs ## build the documentation site, offline: build/site/index.html
	rm -rf build/site
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -c docs/site . build/site

paper: $(VENV)/.dev ## the paper's toy problem, norm growth and lemmas, rerun; writes docs/paper.md (1 min)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.paper --write

TXL := recipes/transformer_xl_wikitext103

demo-transformer-xl: $(VENV)/.recipes ## AdamP and AdamW on a small Transformer-XL, plain and weight-normalised
	PATH="$(abspath $(BIN)):$$PATH" bash $(TXL)/launch/demo.sh

# The first command writes the fixtures of the tests anew.
compare-transformer-xl: $(VENV)/.recipes $(VENV)/transfo_xl/.done ## our Transformer-XL beside Transformers 4.34.1's
	$(VENV)/transfo_xl/bin/python $(TXL)/comparison/reference.py tests/$(TXL)/fixtures runs/transfo_xl
	$(BIN)/python -m recipes.transformer_xl_wikitext103.comparison.check tests/$(TXL)/fixtures runs/transfo_xl
	$(BIN)/python -m recipes.transformer_xl_wikitext103.comparison.speed $(VENV)/transfo_xl/bin/python

demo-audio: $(VENV)/.recipes ## AdamP and AdamW on three audio tasks with real sounds (7 min on 2 cores)
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/audio_classification/launch/demo.sh

demo-adversarial: $(VENV)/.recipes ## five optimizers against an attacker, on silhouettes
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/adversarial_training/launch/demo.sh

demo-detection: $(VENV)/.recipes ## AdamW and AdamP with CenterNet on scenes of sprites; COCO's AP
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/object_detection/launch/demo.sh

demo-rebias: $(VENV)/.recipes ## Adam, AdamW and AdamP in ReBias's two-player game, on biased digits
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/rebias/launch/demo.sh

demo-retrieval: $(VENV)/.recipes ## AdamW and AdamP with Proxy-Anchor on icons, BatchNorm live and frozen
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/image_retrieval/launch/demo.sh

# Cross-compiled; see the script.
wheels: $(VENV)/wheels/.done ## a wheel for each platform and the source distribution, checked: dist/ (6 min)
	bash tools/wheels.sh $(VENV)/wheels/bin

clean: ## remove the virtual environment, runs and caches
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 10) or \
	    sys.exit(f"Python {v} is older than 3.10; name a newer one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(INPUTS) | $(BIN)/python
	$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/python
	$(INSTALL) '.[dev]'
	$(WITHOUT_DEPENDENCIES)
	@touch $@ $(VENV)/.demo

$(VENV)/.recipes: $(INPUTS) | $(BIN)/python
	$(INSTALL) '.[recipes]'
	$(WITHOUT_DEPENDENCIES)
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(INPUTS) | $(BIN)/python
	$(INSTALL) '.[docs]'
	@touch $@

# A release that still had TransfoXL; it needs an old hub client and old tokenizers, and with them
# an environment of its own.
$(VENV)/transfo_xl/.done: constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/transfo_xl
	grep -E '^(torch|numpy|safetensors)==' constraints.txt > $(VENV)/transfo_xl/constraints.txt
	$(VENV)/transfo_xl/bin/python -m pip install --quiet transformers==4.34.1 torch numpy \
	    --constraint $(VENV)/transfo_xl/constraints.txt
	@touch $@

# torchvision is built for one torch, which the pins of the other environment do not name.
$(VENV)/vision/.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/vision
	$(VENV)/vision/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 timm \
	    --editable '.[test]'
	$(VENV)/vision/bin/python -m pip install --quiet --constraint constraints.txt --no-deps arcade
	@touch $@

$(VENV)/wheels/.done: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/wheels
	$(VENV)/wheels/bin/python -m pip install --quiet 'setuptools>=77' build==1.6.1 ziglang==0.17.1 \
	    twine==7.0.0 auditwheel==6.8.2
	@touch $@

# DeepSpeed brings packages that nothing else here asks for.
$(VENV)/deepspeed/.done: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/deepspeed
	$(VENV)/deepspeed/bin/python -m pip install --quiet --constraint constraints.txt \
	    deepspeed==0.19.8 --editable '.[test]'
	@touch $@

# In a folder of their own and without what they depend on: timm asks for torchvision, and where it
# finds none, its import fails, and with it that of everything which tries it (Accelerate's CLI).
$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade --no-deps \
	    --target $(VENV)/bench timm pytorch_optimizer torch-optimizer pytorch-ranger
	@touch $@
