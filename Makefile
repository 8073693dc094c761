# The entry for people and for CI: `make` lists what there is.

CARGO ?= cargo
PROFILE_DIR := target/release
FUZZ_SECONDS ?= 20

.DEFAULT_GOAL := help
.PHONY: help build demo bench figures fuzz test lint deny clean-state

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build all programs and libraries for running (release)
	$(CARGO) build --release --locked --workspace --exclude tests

demo: build ## one simulated GPU for four functions against a GPU for each; report in target/demo (FULL=1: unshortened)
	$(PROFILE_DIR)/gpufn demo $(if $(FULL),--full) $(if $(DATA),--data $(DATA))

bench: ## what sharing costs, measured with the real programs: latencies, quotas, the hook (QUICK=1: shorter)
	$(CARGO) build --release --locked --workspace
	$(CARGO) test --release --locked --package cuda-hook --lib --no-run
	$(PROFILE_DIR)/bench $(if $(QUICK),--quick)

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

lint: ## formatting, clippy, documentation, all without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

deny: ## licences, sources and bans of the dependencies (installs cargo-deny if it is not there)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet cargo-deny --version 0.20.2
	$(CARGO) deny --log-level error --config .deny.toml check bans licenses sources

clean-state: ## remove what `gpufn up` left in this folder
	rm -rf .gpufn
