# The entry for people and for CI: `make` lists what there is.

CARGO ?= cargo
PROFILE_DIR := target/release

.DEFAULT_GOAL := help
.PHONY: help build demo test lint deny bench clean-state

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build all programs and libraries for running (release)
	$(CARGO) build --release --locked --workspace --exclude tests

demo: build ## one simulated GPU for four functions against a GPU for each; report in target/demo (FULL=1: unshortened)
	$(PROFILE_DIR)/gpufn demo $(if $(FULL),--full) $(if $(DATA),--data $(DATA))

test: lint ## lint, then all tests (debug build)
	$(CARGO) build --locked --workspace
	$(CARGO) test --locked --workspace --no-fail-fast

lint: ## formatting, clippy, documentation, all without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

deny: ## licences, sources and bans of the dependencies (installs cargo-deny if it is not there)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet cargo-deny --version 0.20.2
	$(CARGO) deny --log-level error check --config .deny.toml bans licenses sources

clean-state: ## remove what `gpufn up` left in this folder
	rm -rf .gpufn
