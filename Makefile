PARTS := kernels pipelines profiling
TYPES := build/types/vidsparse

.PHONY: types lint test tables
types:  ## The installed layout as links, for tools that do not see setuptools' import hook.
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@ln -s $(addprefix ../../../,$(wildcard vidsparse/*) $(PARTS)) $(TYPES)/

lint: types  ## Lint, format check, types.
	ruff check . && ruff format --check . && mypy

test:  ## All tests that run without a GPU.
	pytest -m "not gpu" -n auto

tables:  ## The pages' tables from profiling/results and the registries.
	python -P -m vidsparse.profiling.tables --write README.md
	python -P -m vidsparse.profiling.tables --write profiling/results/README.md
