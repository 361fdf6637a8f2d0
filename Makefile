# make demo | test | test-fast | fuzz | gpu | reliability | check | lint | audit | licenses | format | clean
# Each target first creates the virtual environment if it is missing or pyproject.toml has changed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: install demo test test-fast fuzz gpu reliability check lint audit licenses format clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch is large; this takes a few minutes once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[openmmlab,dev]'
	@touch $@

DEMO := configs/demo/atss_dinat-pico_fpn_digits.py

# Handwritten digits on photographs: generate the images, train, evaluate on the test split, draw predictions.
demo: $(STAMP)
	$(BIN)/visionattn data samples --out data/samples
	$(BIN)/python tools/train.py $(DEMO) --work-dir work_dirs/demo
	$(BIN)/python tools/test.py work_dirs/demo
	$(BIN)/python tools/infer.py 'data/samples/images/test/*0.jpg' --run work_dirs/demo --out outputs/demo --score-thr 0.2
	@echo
	@echo "images with predicted boxes: outputs/demo/*.png      learning curve: work_dirs/demo/curve.png"

# All tests.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

# The tests marked `fast` (see tests/fixtures/slow.py).
test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m fast

# New random inputs in every run: make fuzz EXAMPLES=1000. Failing examples are tried first in the next run.
EXAMPLES ?= 200
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 VISIONATTN_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

# On a machine with a CUDA device: test the kernels, and benchmark them if the tests pass.
gpu: $(STAMP)
	$(BIN)/python -m pytest tests/kernels
	$(BIN)/python benchmarks/na_gpu.py
	$(BIN)/python benchmarks/routing_gpu.py
	$(BIN)/python benchmarks/scattered_gpu.py

# Interrupt and corrupt training runs, and write the table in docs/reliability.md; needs no GPU.
reliability: $(STAMP)
	$(BIN)/python -m benchmarks.reliability

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Known vulnerabilities of the installed packages (needs the network), and licenses incompatible with this project.
audit: $(STAMP)
	$(BIN)/pip-audit --progress-spinner off --skip-editable
	$(BIN)/pip-licenses --summary --partial-match --fail-on 'AGPL;GNU General Public;GNU Affero;NonCommercial'

licenses: $(STAMP)
	$(BIN)/pip-licenses --partial-match --format=markdown --with-urls --output-file docs/licenses.md --packages \
		torch triton timm numpy mmengine mmcv-lite mmdet mmsegmentation torchvision ftfy regex pycocotools setuptools \
		albumentations opencv-python opencv-python-headless scikit-learn rich tensorboard safetensors

check: lint audit test

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist work_dirs outputs .pytest_cache .ruff_cache .import_linter_cache
