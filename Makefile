METHODS ?=
SEEDS ?= 1
KILLS ?= 40

.PHONY: help setup test faults reproduce frontier bench lint requirements clean

help:
	@echo 'make reproduce  the demo, end to end, and its table (METHODS=full,aegis or all; SEEDS=1)'
	@echo 'make frontier   every method over three seeds: what it kept against what it learnt (hours; stop and start at will)'
	@echo 'make test       the tests'
	@echo 'make faults     what is done to a run on users'\'' machines, at length, and the table of how each ended (an hour; KILLS=40 of each target)'
	@echo 'make bench      training steps, loading and start-up against lerobot, methods against plain fine-tuning (30 minutes, idle machine)'
	@echo 'make setup      .venv with the pinned packages; the other targets do this first'
	@echo 'make lint       ruff and mypy'
	@echo 'make clean      remove build products and tool caches; .venv and runs/ stay'

setup:
	@bash scripts/setup.sh

test: setup # two at a time, each file with its fixtures in one of them
	.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile

faults: setup # the part of it that the tests play is tests/faults/test_*.py
	.venv/bin/python tests/faults/run.py --kills $(KILLS)

reproduce: setup
	.venv/bin/python -m vla_tune.reproduce $(if $(METHODS),--methods $(METHODS)) --seeds $(SEEDS)

frontier: setup
	.venv/bin/python -m vla_tune.reproduce --study frontier

bench: setup
	.venv/bin/python -m benchmarks.run

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

requirements: # keeps the versions of requirements.txt that still fit
	.venv/bin/uv pip compile pyproject.toml --quiet --extra metaworld --extra libero --group dev --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements.txt

clean:
	rm -rf build dist .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
