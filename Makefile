# Names for the common ways. `make up` and `make test` are the two that matter; `cargo build` and `cargo test` work on
# their own.

PREFIX ?= /usr/local
to = $(DESTDIR)$(PREFIX)
# Bounds `make fuzz`: seconds for each target.
SECONDS_EACH ?= 20

# Where `make build` left its executables. Looked up without Rust, which root may not have.
release = $(firstword $(wildcard $(or $(CARGO_TARGET_DIR),target)/*-linux-*/release) nothing-built-yet)

.DEFAULT_GOAL := help
.PHONY: help up test test-hosts build image lint fuzz bench install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

up: ## from a fresh machine to Luna's desktop, and its URL
	@scripts/up

test: ## install what the tests need and run all of them
	@scripts/test

test-hosts: build ## what takes other hosts than this one, emulated: Debian 12 with systemd; exported disks; an hour
	@scripts/test-hosts
	@scripts/export-test

build: ## luna, luna-init, luna-virtiofs and luna-workspace in release
	@scripts/build

image: build ## Luna's image, from images/agent
	$(release)/luna build --network host --tag luna/agent:latest images/agent

lint: ## format, clippy, shell scripts, licences
	@scripts/lint

fuzz: ## every parser of hostile bytes, SECONDS_EACH seconds each
	@scripts/fuzz $(SECONDS_EACH)

bench: ## start-up and memory, side by side with runc and podman
	@benches/start
	@benches/memory

install: ## into PREFIX (/usr/local) below DESTDIR, after `make build`
	install -D -m 0755 $(release)/luna $(to)/bin/luna
	install -D -m 0755 $(release)/luna-init $(to)/lib/luna/luna-init
	install -D -m 0755 $(release)/luna-virtiofs $(to)/lib/luna/luna-virtiofs
	mkdir -p $(to)/share/luna/images $(to)/share/man/man1 $(to)/share/bash-completion/completions \
		$(to)/share/zsh/site-functions $(to)/share/fish/vendor_completions.d
	cp -R images/agent $(to)/share/luna/images/
	$(release)/luna man $(to)/share/man/man1
	$(release)/luna completion bash >$(to)/share/bash-completion/completions/luna
	$(release)/luna completion zsh >$(to)/share/zsh/site-functions/_luna
	$(release)/luna completion fish >$(to)/share/fish/vendor_completions.d/luna.fish

uninstall: ## what install put there; images and sandboxes stay
	rm -rf $(to)/share/luna $(to)/lib/luna
	rm -f $(to)/bin/luna $(to)/share/man/man1/luna.1 $(to)/share/man/man1/luna-*.1 \
		$(to)/share/bash-completion/completions/luna $(to)/share/zsh/site-functions/_luna \
		$(to)/share/fish/vendor_completions.d/luna.fish

clean: ## what was built here; caches and Luna's images stay
	rm -rf target fuzz/target fuzz/artifacts images/agent/luna-agent/luna-workspace
