# make demo   real models, trained, exported, fused into one graph, proven, measured, shown in runs/quickstart/report.html
# make test   everything that must hold: lint, types, layers, all tests
# make bench  the figures of the README, measured again
VENV    ?= .venv
PYTHON  ?= python3
PIP     := $(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt
WITHENV := PATH="$(abspath $(VENV))/bin:$$PATH"

.PHONY: demo test quick lint bench system clean

demo: $(VENV)/.demo
	$(VENV)/bin/monograph run pipelines/quickstart.yaml

test: lint system
	$(VENV)/bin/python -m pytest

quick: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -m "not slow and not browser"

lint: $(VENV)/.dev
	$(WITHENV) pre-commit run --all-files --show-diff-on-failure

bench: $(VENV)/.dev system
	$(VENV)/bin/python benchmarks/fusion_speed.py
	$(VENV)/bin/python benchmarks/cascade_speed.py
	$(VENV)/bin/python benchmarks/shared_trunk.py
	$(VENV)/bin/python benchmarks/large_models.py

# What `demo` needs. torch goes first and pinned, so that no other package brings a build with gigabytes of CUDA.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[cpu,examples]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev]"
	touch $@

# What Debian's packages bring: Chromium, in which tests marked `browser` open the report, and the pictures of Fashion-MNIST.
# Tests that need one of them say so and are skipped where it is missing.
system:
	@$(call debian,chromium,command -v chromium)
	@$(call debian,dataset-fashion-mnist,test -d /usr/share/datasets/fashion-mnist)

debian = $(2) >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; } \
	  || echo "$(1) is not installed: tests that need it will be skipped"

clean:
	rm -rf $(VENV) runs build dist *.egg-info
