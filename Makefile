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

# A worker a core, each kept to it; more than four would want more memory than most machines have.
test: lint system
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

quick: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -m "not slow and not browser"

lint: $(VENV)/.dev
	$(WITHENV) pre-commit run --all-files --show-diff-on-failure

bench: $(VENV)/.dev $(VENV)-nncf/.done system
	$(VENV)/bin/python benchmarks/fusion_speed.py
	$(VENV)/bin/python benchmarks/cascade_speed.py
	$(VENV)/bin/python benchmarks/shared_trunk.py
	$(VENV)/bin/python benchmarks/large_models.py
	$(VENV)/bin/python benchmarks/horizontal_speed.py
	$(VENV)/bin/python benchmarks/harness_selftest.py
	$(VENV)/bin/python benchmarks/target_parity.py
	$(VENV)/bin/python benchmarks/beside_other_work.py
	$(VENV)/bin/python benchmarks/distillation/mnist.py
	$(VENV)/bin/python benchmarks/distillation/fashion.py few
	$(VENV)/bin/python benchmarks/distillation/fashion.py all
	$(VENV)/bin/python benchmarks/distillation/tweets.py
	$(VENV)/bin/python benchmarks/distillation/table.py
	$(VENV)/bin/python benchmarks/adaptation.py
	$(VENV)/bin/python benchmarks/interop.py
	$(PIP) --no-deps rapidocr
	$(VENV)/bin/python benchmarks/eight_bits.py --nncf-python $(VENV)-nncf/bin/python
	$(VENV)/bin/monograph run pipelines/recommend.yaml
	$(VENV)/bin/monograph run pipelines/mobile.yaml
	$(VENV)/bin/monograph run pipelines/sentiment.yaml

# What `demo` needs. torch goes first and pinned, so that no other package brings a build with gigabytes of CUDA.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[cpu,examples]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev]"
	touch $@

# NNCF, which one benchmark compares with, apart from what monograph needs. It sends telemetry by this package, which is taken out.
$(VENV)-nncf/.done: constraints.txt
	test -x $(VENV)-nncf/bin/python || $(PYTHON) -m venv $(VENV)-nncf
	$(VENV)-nncf/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt nncf onnx onnxruntime \
	  && $(VENV)-nncf/bin/python -m pip uninstall -q -y openvino-telemetry && touch $@ \
	  || { rm -rf $(VENV)-nncf; echo "nncf cannot be installed here: eight_bits.py leaves its part out"; }

# What pip does not bring: Debian's packages, ONNX Runtime Web, and Debian for 64-bit ARM to run under an emulator.
# Tests that need one of them say so and are skipped where it is missing.
system: $(VENV)/.dev
	@$(call debian,chromium,command -v chromium)
	@$(call debian,dataset-fashion-mnist,test -d /usr/share/datasets/fashion-mnist)
	@$(call debian,libvulkan1,ldconfig -p | grep libvulkan.so.1)
	@$(call debian,qemu-user-static,command -v qemu-aarch64-static)
	@$(call debian,openssh-server,test -x /usr/sbin/sshd)
	@$(call debian,npm,command -v npm)
	@$(call target,web-wasm)
	@$(call target,arm64)

target = $(VENV)/bin/monograph targets --install $(1) >/dev/null 2>&1 \
	  || echo "what the target $(1) needs cannot be installed here: tests that need it will be skipped"
debian = $(2) >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; } \
	  || echo "$(1) is not installed: tests that need it will be skipped"

clean:
	rm -rf $(VENV) runs build dist *.egg-info
