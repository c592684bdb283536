# make demo: the main job, end to end.   make test: every test.   make help: the rest.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11) python3.11)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find tristage export serving client loadtest gateway -name '*.py' -o -name '*.[ch]' -o -name '*.pyi' -o -path 'gateway/page/*' -o -name CMakeLists.txt) pyproject.toml README.md LICENSE
# where pip is told of a folder of wheels (a CPU build of torch, say), uv is told too
LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
INSTALL := $(BIN)/uv pip install --quiet --prerelease if-necessary --constraint constraints.txt $(LINKS)
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(INSTALL)
MERLIN := .venv-merlin
KERNELS := .kernels
MERLIN_UV := VIRTUAL_ENV=$(CURDIR)/$(MERLIN) $(INSTALL)
# tristage is tested as it is installed, so the checkout must not shadow it
test: export PYTHONSAFEPATH := 1
export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: help demo test containers sanitize check format install merlin kernels clean
help:  ## show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: install  ## train the small stack, export, serve on one core, verify, predict, measure, report
	$(BIN)/python -m examples.recsys2021.demo

test: install merlin kernels  ## run every test; those of image and compose where a container engine is at hand
	$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

containers: install  ## set a container engine up (Debian, as root), and run only the tests of image and compose
	tests/containers/engine.sh
	PYTHONSAFEPATH=1 $(BIN)/pytest tests/containers $(ARGS)

sanitize: install  ## run the engines' tests under sanitizers and valgrind
	tests/sanitize/run.sh

check: install  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile* tests/containers/*.Dockerfile
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p tristage

format: install  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.tristage  ## make the environment, and install tristage into it

$(VENV)/.environment: pyproject.toml constraints.txt
	@echo "making the environment in $(VENV) (once; several minutes on a slow line)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV) --group dev '.[all]'
	touch $@

$(VENV)/.tristage: $(VENV)/.environment $(SOURCES)
	$(UV) --no-deps --reinstall-package tristage .
	touch $@

merlin: $(MERLIN)/.tristage  ## make the environment of Merlin Systems, and install tristage into it

$(MERLIN)/.environment: pyproject.toml constraints.txt tests/merlin/overrides.txt | $(VENV)/.environment
	test -x $(MERLIN)/bin/python || $(PYTHON) -m venv --without-pip $(MERLIN)
	$(MERLIN_UV) --overrides tests/merlin/overrides.txt --group merlin '.[torch,tensorflow]'
	touch $@

$(MERLIN)/.tristage: $(MERLIN)/.environment $(SOURCES)
	$(MERLIN_UV) --no-deps --reinstall-package tristage .
	touch $@

kernels: $(KERNELS)/.triton  ## bring the language of the GPU's kernel, to interpret and compile it without a GPU

# in a folder of its own: beside TensorFlow in one process, its compiler ends that
$(KERNELS)/.triton: | $(VENV)/.environment
	$(UV) --no-deps --target $(KERNELS) triton==3.9.0
	touch $@

clean:  ## remove the environment, trained artifacts and exported repositories
	rm -rf $(VENV) $(MERLIN) $(KERNELS) .cache examples/*/artifacts
	find model_repository -mindepth 1 ! -name README.md -delete
