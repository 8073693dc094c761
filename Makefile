# The entry for people and for CI: `make` lists what there is.

CARGO ?= cargo
PROFILE_DIR := target/release
FUZZ_SECONDS ?= 20
REQUESTS ?= 50000000
WATCHDOG_DIR := target/$(if $(FULL),release,debug)
TARGET ?=
STATIC_TARGET = $(or $(TARGET),$(shell rustc -vV | sed -n 's/^host: //p'))
STATIC_DIR = target/$(STATIC_TARGET)/shipped
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# As images call it.
ARCHITECTURE = $(patsubst x86_64-%,amd64,$(patsubst aarch64-%,arm64,$(STATIC_TARGET)))
IMAGE_ROOT = target/image/$(ARCHITECTURE)
IMAGE_HOOK = $(IMAGE_ROOT)/opt/gpufn/$(VERSION)/lib
# The programs that load the hook are built for glibc.
HOOK_TARGET = $(patsubst %-musl,%-gnu,$(TARGET))
HOOK_DIR = $(if $(TARGET),target/$(HOOK_TARGET)/release,$(PROFILE_DIR))

NODE_IMAGE_ROOT = target/image-node/$(ARCHITECTURE)
SCALER_IMAGE_ROOT = target/image-scaler/$(ARCHITECTURE)
# From the folder of built libraries into a folder, by the names under which programs look for them.
define install-hook
	install -D $(1)/libcuda_hook.so $(2)/libcuda.so.1
	install $(1)/libgpufn_nvml.so $(2)/libnvidia-ml.so.1
	install $(1)/libgpufn_preload.so $(2)/libgpufn_preload.so
	ln -s libcuda.so.1 $(2)/libcuda.so
	ln -s libnvidia-ml.so.1 $(2)/libnvidia-ml.so
endef

.DEFAULT_GOAL := help
.PHONY: help build demo bench bench-plugin bench-scaler build-node bench-watchdog build-watchdog-static watchdog-image-root node-image-root scaler-image-root bench-hook gpu-proof figures \
	fuzz test-clients test-watchdog soak-watchdog cluster-build cluster-up cluster-down e2e figures-profile figures-policies \
	figures-sim-validation figures-planner bench-sim test-charts test-page test-templates test-kubelet test lint deny clean-state

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build all programs and libraries for running (release)
	$(CARGO) build --release --locked --workspace --exclude tests

demo: build ## one simulated GPU for four functions against a GPU for each; report in target/demo (FULL=1: unshortened)
	$(PROFILE_DIR)/gpufn demo $(if $(FULL),--full) $(if $(DATA),--data $(DATA))

bench: ## what sharing costs, measured with the real programs: latencies, waking, quotas (QUICK=1: shorter)
	$(CARGO) build --release --locked --workspace
	$(PROFILE_DIR)/bench $(if $(QUICK),--quick)

bench-watchdog: build-watchdog-static ## fwatchdog beside nginx, haproxy and an of-watchdog (PEER=its path) in one run; needs wrk and nginx
	$(CARGO) build --release --locked --package tests --bin bench-watchdog
	$(PROFILE_DIR)/bench-watchdog --watchdog $(STATIC_DIR)/fwatchdog $(if $(PEER),--peer $(PEER)) \
		$(if $(QUICK),--rounds 2 --seconds 1)

bench-plugin: build-node ## how long the kubelet waits for the device plugin, and what that costs the node (QUICK=1: shorter)
	$(CARGO) build --release --locked --package simcuda --package cuda-hook --package cuda-hook-nvml
	$(CARGO) build --release --locked --package tests --bin bench-plugin
	$(PROFILE_DIR)/bench-plugin --node target/shipped/gpufn-node $(if $(QUICK),--quick)

bench-scaler: ## how long KEDA waits for the scaler at 10,000 ScaledObjects, and what that costs (QUICK=1: a tenth, shorter)
	$(CARGO) build --release --locked --package scaler --bin gpufn-scaler
	$(CARGO) build --release --locked --package tests --bin bench-scaler
	$(PROFILE_DIR)/bench-scaler $(if $(QUICK),--quick)

build-node: ## gpufn-node as images have it, in target/shipped; not static, since it loads NVML while it runs
# Relocations in the short form, half a megabyte less to read at each start: glibc from 2.36, which the image has.
	$(CARGO) rustc --profile shipped --locked --package device-plugin --bin gpufn-node -- -C link-arg=-Wl,-z,pack-relative-relocs

node-image-root: build-node ## what device-plugin/Dockerfile puts into an image, in target/image-node: gpufn-node and the hook
	$(CARGO) build --release --locked --package cuda-hook --package cuda-hook-nvml --package cuda-hook-preload
	rm -rf $(NODE_IMAGE_ROOT)
	install -D target/shipped/gpufn-node $(NODE_IMAGE_ROOT)/gpufn-node
	$(call install-hook,$(PROFILE_DIR),$(NODE_IMAGE_ROOT)/hook)

scaler-image-root: ## what scaler/Dockerfile puts into an image, in target/image-scaler: gpufn-scaler
	$(CARGO) build --release --locked --package scaler --bin gpufn-scaler
	rm -rf $(SCALER_IMAGE_ROOT)
	install -D --strip $(PROFILE_DIR)/gpufn-scaler $(SCALER_IMAGE_ROOT)/gpufn-scaler

watchdog-image-root: build-watchdog-static ## what watchdog/Dockerfile puts into an image, in target/image: fwatchdog and the hook (TARGET)
	$(CARGO) build --release --locked --package cuda-hook --package cuda-hook-nvml --package cuda-hook-preload \
		$(if $(TARGET),--target $(HOOK_TARGET))
	rm -rf $(IMAGE_ROOT)
	install -d -m 1777 $(IMAGE_ROOT)/tmp
	install -D $(STATIC_DIR)/fwatchdog $(IMAGE_ROOT)/fwatchdog
	$(call install-hook,$(HOOK_DIR),$(IMAGE_HOOK))

bench-hook: ## how exactly shares of GPU time are delivered, the whole matrix (QUICK=1: shorter; HAMI=libvgpu.so: beside it)
	$(CARGO) build --release --locked --workspace
	$(CARGO) test --release --locked --package cuda-hook --test regressions --no-run
	$(PROFILE_DIR)/bench-hook $(if $(QUICK),--quick) $(if $(HAMI),--hami $(HAMI))

gpu-proof: ## audit the NVIDIA card of this machine, else a simulated one; report in target/gpu-proof (QUICK=1, FULL=1)
	test -x $(PROFILE_DIR)/gpufn -a -f $(PROFILE_DIR)/libcuda_hook.so -a -f $(PROFILE_DIR)/libsimcuda.so || $(MAKE) build
	$(PROFILE_DIR)/gpufn audit $(if $(QUICK),--quick) $(if $(FULL),--full) \
		--json target/gpu-proof/report.json --html target/gpu-proof/report.html

figures: ## collect what demo and bench measured into docs/figures.md
	$(CARGO) run --release --locked --quiet --package tests --bin figures

figures-profile: ## how well latencies of unseen models are predicted, by cross-validation (DATA=FILE: other models)
	$(CARGO) build --release --locked --package gpufn
	$(PROFILE_DIR)/gpufn profile-figures $(if $(DATA),--data $(DATA))

figures-policies: ## all policies on all traces, simulated; over an hour, minutes with QUICK=1 (DATA=FILE: a scenario)
	$(CARGO) build --release --locked --package gpufn
	$(PROFILE_DIR)/gpufn sim figures policies $(if $(QUICK),--quick) $(if $(DATA),--data $(DATA))

figures-sim-validation: ## the simulator against published runs and curves (DATA=FILE: other runs)
	$(CARGO) build --release --locked --package gpufn
	$(PROFILE_DIR)/gpufn sim figures validation $(if $(DATA),--data $(DATA))

bench-sim: ## how fast the simulator is, how long decisions take (QUICK=1: shorter)
	$(CARGO) build --release --locked --package gpufn
	$(PROFILE_DIR)/gpufn sim figures bench $(if $(QUICK),--quick)

figures-planner: ## how well the cost model meets the bills of a published study, run by run (DATA=FILE: other runs)
	$(CARGO) build --release --locked --package gpufn
	$(PROFILE_DIR)/gpufn plan-figures $(if $(DATA),--data $(DATA))

fuzz: ## feed each parser of outside input for FUZZ_SECONDS (20); needs the nightly toolchain, installs cargo-fuzz
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked --quiet cargo-fuzz --version 0.13.2
	@cd tests && for target in $$($(CARGO) +nightly fuzz list); do \
		echo "fuzz $$target" && mkdir -p fuzz/corpus/$$target && \
		$(CARGO) +nightly fuzz run --target-dir $(CURDIR)/target/fuzz $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

test: lint ## lint, then all tests (debug build)
	$(CARGO) build --locked --workspace
	$(CARGO) test --locked --workspace --no-fail-fast

test-watchdog: ## the numbered cases of a watchdog, in both forms, and random bodies (FULL=1: all of them); PEER=path: another one too
	$(CARGO) build --locked $(if $(FULL),--release) --package watchdog --package tests \
		--bin fwatchdog --bin watchdog-suite --bin watchdog-load
	$(WATCHDOG_DIR)/watchdog-suite --jobs 4 $(WATCHDOG_DIR)/fwatchdog
	$(WATCHDOG_DIR)/watchdog-suite --jobs 4 --old --env compat=of-watchdog $(WATCHDOG_DIR)/fwatchdog
	$(if $(PEER),$(WATCHDOG_DIR)/watchdog-suite --old $(PEER))
	$(WATCHDOG_DIR)/watchdog-load bodies $(if $(FULL),--full) $(WATCHDOG_DIR)/fwatchdog

soak-watchdog: ## REQUESTS (5e7) through fwatchdog, less where each has a process: memory, descriptors and threads do not grow
	$(CARGO) build --release --locked --package watchdog --package tests --bin fwatchdog --bin watchdog-load
	$(PROFILE_DIR)/watchdog-load soak --requests $(REQUESTS) $(PROFILE_DIR)/fwatchdog

test-clients: ## real CUDA programs under a share of a simulated GPU; installs them once in target/clients
	$(CARGO) build --locked --workspace
	target/debug/clients

test-charts: ## the charts, rendered for each version of Kubernetes; installs Helm once in target/charts (RENEW=1: what is rendered is right)
	$(CARGO) test --locked --package tests --test charts -- --include-ignored

test-page: ## the web page in Chromium, which npm installs once in target/page; pictures are left there; needs Node
	$(CARGO) build --locked --workspace
	$(CARGO) test --locked --package tests --test page -- --include-ignored

test-templates: ## the templates of functions, as faas-cli lays them out, under `gpufn up`; needs Python
	$(CARGO) build --locked --workspace
	$(CARGO) test --locked --package tests --test templates -- --include-ignored

test-kubelet: ## the device plugin beside the kubelet's own device manager, which Go builds once; needs Go
	$(CARGO) build --locked --workspace
	$(CARGO) test --locked --package tests --test device_manager --test kubelet -- --include-ignored

cluster-build: ## build the real Kubernetes for tests, once, from Go modules; kept in ~/.cache/gpufn-cluster
	$(CARGO) build --locked --package tests --bin cluster
	target/debug/cluster build

cluster-up: cluster-build ## boot a Kubernetes of one node in namespaces of its own; needs root; then: target/debug/cluster exec …
	target/debug/cluster up

cluster-down: ## end it
	$(CARGO) build --locked --package tests --bin cluster
	target/debug/cluster down

e2e: ## the tests on a real Kubernetes, with a real KEDA; needs root and Go
	$(CARGO) build --locked --workspace
	target/debug/cluster build --all
	$(CARGO) test --locked --package tests --test cluster --test e2e --no-run
	$(CARGO) test --locked --package tests --test cluster -- --include-ignored --test-threads 1
	target/debug/cluster with -- $(CARGO) test --offline --locked --package tests --test e2e -- --include-ignored --test-threads 1

lint: ## formatting, clippy, documentation, all without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

deny: ## licences, sources and bans of the dependencies (installs cargo-deny if it is not there)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet cargo-deny --version 0.20.2
	$(CARGO) deny --log-level error --config .deny.toml check bans licenses sources

clean-state: ## remove what `gpufn up` left in this folder
	rm -rf .gpufn
