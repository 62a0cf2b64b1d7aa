# make demo: from a clone to a trained network and a classified clip.   make test: the whole test suite.

PYTHON ?= python3
STARTED := $(shell date +%s)
VENV := .venv
PY := $(VENV)/bin/python

# idle OpenMP threads must not spin on cores that decoding workers and other processes need
export OMP_WAIT_POLICY ?= passive

# A development install compiles for the GPUs of this machine, or where there is none as little as runs on all of them;
# a wheel is for every GPU (setup.py).
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr '\n' ' ')
ARCHITECTURES := $(or $(TORCH_CUDA_ARCH_LIST),$(strip $(GPUS)),7.5+PTX)

.PHONY: env demo test mutants lint wheel clean

env: $(VENV)/.installed

SOURCES := constraints.txt pyproject.toml setup.py $(wildcard cuda_ext/*)

# pip would say of an older Python that it finds no numpy. torch comes first because our own library compiles against it.
define BEGIN_VENV
@$(PYTHON) -c 'import sys; sys.exit("softpool3d needs Python 3.11 or newer, and $(PYTHON) is older: \
	name another, as in PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
$(PYTHON) -m venv $(VENV)
$(PY) -m pip install -q -c constraints.txt torch setuptools wheel ninja
endef

# the stamp is touched last, so that an interrupted install is taken up again and a finished one installs nothing
$(VENV)/.installed: $(SOURCES) $(VENV)/.architectures
	$(BEGIN_VENV)
	TORCH_CUDA_ARCH_LIST='$(ARCHITECTURES)' $(PY) -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $(VENV)/.demo $@

# what the demo needs: no packages of tests, and kernels for GPUs only where there is one
$(VENV)/.demo: $(SOURCES) $(VENV)/.architectures
	$(BEGIN_VENV)
	$(if $(GPUS),,SOFTPOOL3D_CUDA=0) TORCH_CUDA_ARCH_LIST='$(ARCHITECTURES)' \
		$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e .
	touch $@

# looked at each time, written where it changed: other architectures compile again
$(VENV)/.architectures: FORCE
	@mkdir -p $(VENV) && echo '$(ARCHITECTURES)' | cmp -s - $@ || echo '$(ARCHITECTURES)' > $@
FORCE:

demo: $(VENV)/.demo
	DEMO_STARTED=$(STARTED) $(PY) benchmarks/demo.py

# a process on each core, with one thread: faster than one process with threads
test: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# changes the code in a copy and runs the tests beside each change: in the background of a day; goes on where it was
mutants: env
	$(PY) tests/mutants.py

# benchmarks/NAME.py: make bench-op ARGS='--quick'
bench-%: env
	$(PY) benchmarks/$*.py $(ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# auditwheel tags it for the systems that it runs on, and fails where those are too few; torch's libraries stay torch's
wheel: env
	rm -rf build/wheel
	$(PY) -m build --wheel --no-isolation --outdir build/wheel
	PATH=$(abspath $(VENV)/bin):$$PATH auditwheel repair --plat manylinux_2_28_$$(uname -m) \
		--exclude 'libtorch*.so' --exclude libc10.so --wheel-dir dist build/wheel/*.whl

clean:
	rm -rf build dist *.egg-info softpool3d/*.so $(VENV)
