# The entry for people and for CI: `make` lists what there is.

CARGO ?= cargo
PROFILE_DIR := target/release
FUZZ_SECONDS ?= 20
TARGET ?=
STATIC_TARGET = $(or $(TARGET),$(shell rustc -vV | sed -n 's/^host: //p'))

.DEFAULT_GOAL := help
.PHONY: help build demo bench bench-watchdog build-watchdog-static bench-hook gpu-proof figures fuzz test-clients test-watchdog test lint deny clean-state

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build all programs and libraries for running (release)
	$(CARGO) build --release --locked --workspace --exclude tests

demo: build ## one simulated GPU for four functions against a GPU for each; report in target/demo (FULL=1: unshortened)
	$(PROFILE_DIR)/gpufn demo $(if $(FULL),--full) $(if $(DATA),--data $(DATA))

bench: ## what sharing costs, measured with the real programs: latencies, waking, quotas (QUICK=1: shorter)
	$(CARGO) build --release --locked --workspace
	$(PROFILE_DIR)/bench $(if $(QUICK),--quick)

bench-watchdog: ## fwatchdog beside nginx, haproxy and an of-watchdog (PEER=its path) in one run; needs wrk and nginx
	$(CARGO) build --release --locked --package watchdog --package tests --bin fwatchdog --bin bench-watchdog
	$(PROFILE_DIR)/bench-watchdog $(if $(PEER),--peer $(PEER)) $(if $(QUICK),--rounds 2 --seconds 1)

build-watchdog-static: ## fwatchdog as one file that needs no library, in target/<TARGET>/release (TARGET: another target)
	RUSTFLAGS='-C target-feature=+crt-static -C strip=symbols' $(CARGO) build --release --locked --package watchdog --bin fwatchdog --target $(STATIC_TARGET)

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

test-watchdog: ## the numbered cases of a watchdog, in both forms; PEER=path: against another one too
	$(CARGO) build --locked --package watchdog --package tests --bin fwatchdog --bin watchdog-suite
	target/debug/watchdog-suite --jobs 4 target/debug/fwatchdog
	target/debug/watchdog-suite --jobs 4 --old --env compat=of-watchdog target/debug/fwatchdog
	$(if $(PEER),target/debug/watchdog-suite --old $(PEER))

test-clients: ## real CUDA programs under a share of a simulated GPU; installs them once in target/clients
	$(CARGO) build --locked --workspace
	target/debug/clients

lint: ## formatting, clippy, documentation, all without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

deny: ## licences, sources and bans of the dependencies (installs cargo-deny if it is not there)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet cargo-deny --version 0.20.2
	$(CARGO) deny --log-level error --config .deny.toml check bans licenses sources

clean-state: ## remove what `gpufn up` left in this folder
	rm -rf .gpufn
