# make demo | node | site | test | test-fast | fuzz | gpu | gpu-tests | reliability | check | lint | audit | licenses |
# format | clean
# Each target first creates the virtual environment if it is missing or pyproject.toml has changed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: install demo node site test test-fast fuzz gpu reliability check lint audit licenses format clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch is large; this takes a few minutes once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[openmmlab,dev]'
	@touch $@

DEMO := atss_dinat-pico_fpn_digits

# Predict with a model of the package. Then handwritten digits on photographs: generate the images, train, evaluate on
# the test split, draw predictions.
demo: $(STAMP)
	$(BIN)/visionattn infer --model nuclei --out outputs/nuclei
	$(BIN)/visionattn data samples --out data/samples
	$(BIN)/visionattn train $(DEMO) --work-dir work_dirs/demo
	$(BIN)/visionattn test work_dirs/demo
	$(BIN)/visionattn infer 'data/samples/images/test/*0.jpg' --run work_dirs/demo --out outputs/demo --score-thr 0.2
	@echo
	@echo "nuclei: outputs/nuclei/nuclei.png      digits: outputs/demo/*.png      learning curve: work_dirs/demo/curve.png"

# The npm package that runs the JavaScript example of docs/deployment.md in the tests, which skip it otherwise.
NODE := $(VENV)/node
node: $(STAMP)
	@test -d $(NODE)/node_modules/onnxruntime-web || \
		npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(NODE) onnxruntime-web@1.30.0

# The documentation as pages in docs/_build/html, without network. The notebooks are executed once, which takes about four
# minutes; VISIONATTN_NOTEBOOKS=off leaves out their outputs.
site: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# All tests.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# The tests marked `fast` (see tests/fixtures/slow.py).
test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m fast

# New random inputs in every run: make fuzz EXAMPLES=1000. Failing examples are tried first in the next run.
EXAMPLES ?= 200
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 VISIONATTN_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

# On a machine with a CUDA device: test the kernels and measure them, see docs/gpu.md. Each part has a target of its own,
# such as gpu-tests or gpu-models, and is bounded to ten minutes. With an existing Python that has PyTorch, Triton, timm
# and pytest, installing nothing: make gpu PYTHON=python3 INSTALL=0
INSTALL ?= 1
ifeq ($(INSTALL),0)
GPU_PYTHON := PYTHONPATH=. $(PYTHON)
GPU_READY  :=
else
GPU_PYTHON := $(BIN)/python
GPU_READY  := $(STAMP)
endif
GPU_PARTS := $(addprefix gpu-,tests goals counters tune routing scattered models)

gpu: $(GPU_READY)
	$(GPU_PYTHON) benchmarks/gpu.py

.PHONY: $(GPU_PARTS)
$(GPU_PARTS): gpu-%: $(GPU_READY)
	$(GPU_PYTHON) benchmarks/gpu.py --part $*

# Interrupt and corrupt training runs, and write the table in docs/reliability.md; needs no GPU.
reliability: $(STAMP)
	$(BIN)/python -m benchmarks.reliability

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Known vulnerabilities of the installed packages (needs the network), and licenses incompatible with this project.
# docutils, which twine needs, is in the public domain and under the BSD license except for two files that are not used.
audit: $(STAMP)
	$(BIN)/pip-audit --progress-spinner off --skip-editable
	$(BIN)/pip-licenses --summary --partial-match --ignore-packages docutils --fail-on 'AGPL;GNU General Public;GNU Affero;NonCommercial'

licenses: $(STAMP)
	$(BIN)/pip-licenses --partial-match --format=markdown --with-urls --output-file docs/licenses.md --packages \
		torch triton timm numpy mmengine mmcv-lite mmdet mmsegmentation torchvision ftfy regex pycocotools setuptools \
		albumentations opencv-python opencv-python-headless scikit-learn rich tensorboard safetensors

check: lint audit test

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist work_dirs outputs docs/_build docs/_generated .pytest_cache .ruff_cache .import_linter_cache
