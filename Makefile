# `make demo` and `make test` need Python 3.11 or newer, make and a C++ compiler; they create the rest.
# (Without a compiler the kernels run through torch: slower, with the same results.)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PRESET ?= demo
SEED ?= 42
QUESTION ?= 'add 3 5 9 2.'
GATE_MISSED := 4

.PHONY: demo test lint bench bench-decode bench-merge bench-thoughts bench-kernels sanitize clean test-newest-triton

# The native extension, and CMake and Ninja where the system has none.
NATIVE := CMakeLists.txt $(wildcard kernels/agentforge_kernels/native/*.[ch]pp)
# setuptools and wheel: a dependency of the `gpt2` extra comes as source only.
BUILD_TOOLS := scikit-build-core nanobind setuptools wheel \
	$(if $(shell command -v cmake),,cmake) $(if $(shell command -v ninja),,ninja)

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,gpt2]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/agentforge-tui --batch --preset $(PRESET) --set seed=$(SEED); code=$$?; \
	if [ $$code = 0 ] || [ $$code = $(GATE_MISSED) ]; then \
		$(BIN)/agentforge-tui chat latest --show-thoughts --prompt $(QUESTION) || exit; \
	fi; exit $$code

# A worker for each core, up to four; a file stays with one worker, for what its tests share. In the order of the
# folders: sorted by size, the few long tests of the phases would come last and leave a core idle.
TEST_WORKERS := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# TESTS=tests/kernels runs a part.
test: $(INSTALLED)
	$(BIN)/python -m pytest $(TEST_WORKERS) $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=kernels:tui $(BIN)/lint-imports

# The kernels' tests with the newest Triton there is, in an environment of its own.
NEWEST := .venv-newest-triton
NEWEST_INSTALLED := $(NEWEST)/.installed
$(NEWEST_INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(NEWEST)
	grep -v '^triton==' constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/bin/python -m pip install --quiet -c $(NEWEST)/constraints.txt $(BUILD_TOOLS)
	$(NEWEST)/bin/python -m pip install --quiet -c $(NEWEST)/constraints.txt --no-build-isolation -e '.[dev]'
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --no-deps triton
	touch $@

test-newest-triton: $(NEWEST_INSTALLED)
	$(NEWEST)/bin/python -c 'import triton; print("triton", triton.__version__)'
	$(NEWEST)/bin/python -m pytest $(TEST_WORKERS) tests/kernels

bench: $(INSTALLED)
	$(BIN)/python -m bench.bench_training

# A token and a prompt of a random model, by every way to run it. PRESET=full needs DATA, a folder with GPT-2's tokenizer.
bench-decode: $(INSTALLED)
	$(BIN)/python -m bench.bench_decode --preset $(PRESET) $(if $(DATA),--data-dir $(DATA))

# GB/s of each merge technique beside a copy, and evaluations a second of the merge search.
bench-merge: $(INSTALLED)
	$(BIN)/python -m bench.merge_throughput $(if $(QUICK),--quick)
	$(BIN)/python -m bench.merge_evaluations $(if $(QUICK),--quick)

# Thoughts and answers a second, in parallel and one after the other.
bench-thoughts: $(INSTALLED)
	$(BIN)/python -m bench.thoughts $(if $(QUICK),--quick)

# CPU kernels beside ggml and torch; QUICK=1: four shapes, under a minute once ggml is there. It compiles
# for some minutes, once; where it does not, the tables say that the peer is missing.
GGML_INSTALLED := $(VENV)/.ggml-installed
$(GGML_INSTALLED): $(INSTALLED)
	@echo "installing llama-cpp-python: its ggml compiles for some minutes"
	if $(BIN)/python -m pip install --quiet -c constraints.txt llama-cpp-python; then touch $@; fi

bench-kernels: $(INSTALLED) $(GGML_INSTALLED)
	$(BIN)/python -m bench.kernels $(if $(QUICK),--quick)

# The native kernels under AddressSanitizer and UBSan: every exactness test against an instrumented
# build. Leak detection is off: it would report Python and torch.
SANITIZED := build/sanitize
SANITIZER_LIBRARIES := libasan.so libubsan.so libstdc++.so
sanitize: $(INSTALLED)
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=Release -DAGENTFORGE_SANITIZE=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python)
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED)
	LD_PRELOAD="$(foreach library,$(SANITIZER_LIBRARIES),$(shell $(or $(CXX),c++) -print-file-name=$(library)))" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	AGENTFORGE_TEST_EXTENSION="$$(echo $(abspath $(SANITIZED))/_extension*.so)" \
	$(BIN)/python -m pytest -p tests.kernels.sanitized_extension -p no:cacheprovider \
		tests/kernels/test_native_dense.py tests/kernels/test_native_quantize.py \
		tests/kernels/test_native_levels.py tests/kernels/test_native_tiles.py tests/kernels/test_native_amx.py \
		tests/kernels/test_forms.py tests/kernels/test_linear.py tests/unit/test_plan_native.py \
		$(wildcard tests/kernels/test_native_*sparse*.py tests/kernels/test_native_int8*.py)

clean:
	rm -rf $(VENV) $(NEWEST) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
