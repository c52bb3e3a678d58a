# make demo    set up, build and run the whole thing on a ROS 2 graph
# make test    set up, build, and run all checks and tests
# make help    the other targets

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where `make install` puts the ROS 2 package, and where cargo builds.
PREFIX ?= $(CURDIR)/install
# Not abspath, which takes a path with a space for two.
TARGET_DIR := $(shell realpath -m -- "$${CARGO_TARGET_DIR:-target}")
FEATURES := --features ros2
# For example: make test PYTEST_ARGS='-k packaging -x'
PYTEST_ARGS ?=
# Files of Python tests that run at a time. Each test has a ROS domain of its own, and most of them wait most of the time.
PYTEST_WORKERS ?= 2
# For example: make demo DEMO_ARGS='--frames 50'
DEMO_ARGS ?=

# How often test-repeated runs the tests.
N ?= 10
# For example: make test-repeated REPEAT_ARGS=--odd
REPEAT_ARGS ?=

ENV := source build/env.sh
# What the caller's shell holds decides no test.
CLEAN := "$$CENTERPOINT_PTQ_PYTHON" scripts/surroundings.py

.PHONY: help setup build install demo lint test test-rust test-python test-repeated clean distclean

help:
	@echo 'make demo      set up, build, and run the main job on a ROS 2 graph'
	@echo 'make test      set up, build, lint, and run the Rust and Python tests'
	@echo 'make test-repeated   make test N=10 times, every second time beside other work'
	@echo 'make build     the programs, in target/release'
	@echo 'make install   the ROS 2 package, in install/ (or PREFIX=...)'
	@echo 'make lint      formatting and clippy'
	@echo 'make setup     ROS 2, ONNX Runtime and tools only (scripts/setup)'
	@echo 'make clean     removes what was built; distclean also what was downloaded'

setup:
	@scripts/setup

build: setup
	@$(ENV) && cargo build --release --locked $(FEATURES)

# The same CMake file that colcon uses, on the binaries that cargo has built already.
install: build
	@mkdir -p build/package
	@$(ENV) && { cmake -S . -B build/package -DCMAKE_INSTALL_PREFIX='$(PREFIX)' \
	      -DCENTERPOINT_PTQ_TARGET_DIR='$(TARGET_DIR)' -DBUILD_TESTING=OFF && \
	    cmake --build build/package && cmake --install build/package; } >build/package/log 2>&1 \
	    || { cat build/package/log; exit 1; }
	@echo 'Installed to $(PREFIX)'

demo: install
	@$(ENV) && "$$CENTERPOINT_PTQ_PYTHON" scripts/demo.py $(DEMO_ARGS)

lint: setup
	@$(ENV) && cargo fmt --all --check
	@$(ENV) && cargo clippy --release --locked --all-targets --all-features -- -D warnings

test: lint test-rust test-python

test-rust: setup
	@$(ENV) && if command -v cargo-nextest >/dev/null; then \
	    $(CLEAN) cargo nextest run --release --locked $(FEATURES) --no-fail-fast && \
	    $(CLEAN) cargo test --release --locked $(FEATURES) --doc; \
	else \
	    $(CLEAN) cargo test --release --locked $(FEATURES) --no-fail-fast; \
	fi

test-python: install
	@$(ENV) && $(CLEAN) "$$CENTERPOINT_PTQ_PYTHON" -m pytest tests -p xdist -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-repeated: setup
	@$(ENV) && "$$CENTERPOINT_PTQ_PYTHON" scripts/repeat_tests.py --times $(N) $(REPEAT_ARGS) -- $(MAKE) test

clean:
	cargo clean
	rm -rf build/package build/ros_home build/pytest_cache build/test-repeated '$(CURDIR)/install'

distclean: clean
	rm -rf build/ros2 build/env.sh
