# Everything happens in .venv; a second call is quick because the stamp file is newer than pyproject.toml.
PYTHON ?= python3.11
STEMMA := .venv/bin/stemma
# A process a core, each on one thread: small models gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

.PHONY: run test test-all bench lint types imports clean

run: .venv/base
	$(STEMMA) compare --out runs/compare

test: .venv/dev
	$(PYTEST) -m "not slow"

test-all: .venv/dev
	$(PYTEST)

bench: .venv/dev
	.venv/bin/python benchmarks/pretraining.py
	.venv/bin/python benchmarks/finetuning.py
	.venv/bin/python benchmarks/fill.py
	.venv/bin/python benchmarks/facts.py --quick
	.venv/bin/python benchmarks/probing.py --quick
	.venv/bin/python benchmarks/prompting.py --quick
	.venv/bin/python benchmarks/vectors.py --words 500000
	.venv/bin/python benchmarks/training.py --quick
	.venv/bin/python benchmarks/decode.py --quick
	.venv/bin/python benchmarks/recurrent.py --quick
	.venv/bin/python benchmarks/alignment.py --quick
	.venv/bin/python benchmarks/windows.py --quick
	.venv/bin/python benchmarks/translation.py --quick
	.venv/bin/python benchmarks/elmo.py --quick
	.venv/bin/python benchmarks/quantization.py --quick
	.venv/bin/python benchmarks/serving.py --quick
	.venv/bin/python benchmarks/images.py --quick
	.venv/bin/python benchmarks/distillation.py --quick

lint: .venv/dev
	.venv/bin/ruff check src tests benchmarks
	.venv/bin/ruff format --check src tests benchmarks

types: .venv/dev
	.venv/bin/mypy

imports: .venv/dev
	.venv/bin/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and by itself, so that the build that the machine's configuration offers is taken.
.venv/base: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet "torch>=2.12,<2.14"
	.venv/bin/python -m pip install --quiet -e ".[compare]"
	touch $@

.venv/dev: .venv/base
	.venv/bin/python -m pip install --quiet -e ".[dev]"
# By itself: it asks for torchvision, which PyPI has for CUDA builds of torch only; the tests do without.
	.venv/bin/python -m pip install --quiet --no-deps "timm>=1.0.20"
	touch $@

clean:
	rm -rf .venv runs
