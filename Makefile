# Every target installs what it lacks (scripts/setup.sh), builds, and runs. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
# The tests start each other's programs, so one place for all of them.
export CARGO_TARGET_DIR := $(CURDIR)/target

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: demo
demo: setup-run web ## Two small guests and all services on 127.0.0.1, until Ctrl-C
	cargo build --workspace
	target/debug/demo

.PHONY: smoke
smoke: setup-test web ## The story of the README, unattended, on a real guest; exits 0 or 1
	cargo build --workspace
	target/debug/smoke

.PHONY: test
test: setup-test page ## Every check and every test; goes on after failures and lists them at the end
	scripts/test.sh

.PHONY: perl
perl: setup-test web ## The tests of the Perl modules alone
	cargo build --workspace
	cd ravada && prove -l -j2 t

.PHONY: simulate
simulate: setup-build ## API and agents over a failing network in simulated time: SEEDS=1000, or SEED=17 again
	$(if $(SEED),SEED=$(SEED)) SEEDS=$(or $(SEEDS),$(if $(SEED),1,1000)) cargo test -p snapshot-api --test simulation -- --nocapture

.PHONY: screenshots
screenshots: setup-test web ## Take the pictures in README.md anew: docs/page.png, docs/screenshots
	cargo build --workspace
	cargo test -p tests --test e2e_page the_picture_of_the_page
	cp target/screenshots/page.png docs/page.png
	mkdir -p docs/screenshots
	cp target/screenshots/{create,revert,remove,edit}.png docs/screenshots/

.PHONY: lint
lint: setup-test web ## Formatting, lints, the rules of the .proto files
	scripts/lint.sh

.PHONY: bench
bench: setup-test web ## Latency, memory, cascades, pauses and reverts beside libvirt's own, fairness between users: WHAT=latency|cascade|fairness|live|in_place; writes target/bench/report.json
	cargo build --workspace --release
	target/release/bench $(WHAT)

.PHONY: faults
faults: setup-test web ## Kill, cut and fill while guests are worked on: N kills from the seed SEED (100, 1; random for another each time), FOREIGN operations of administrators beside them (0); STORAGE=external|live
	cargo build --workspace
	target/debug/faults --kills $(or $(N),100) --foreign $(or $(FOREIGN),0) --seed $(or $(SEED),1) $(if $(STORAGE),--storage $(STORAGE))

.PHONY: vm-matrix
vm-matrix: setup-test $(if $(DEBIAN),setup-bare) web ## Every operation on VMs of all forms; writes docs/vm-matrix.md: FORM=word for those whose name has the word, without writing; DEBIAN=12, 13, 13-backports or sid for libvirt and QEMU of that release, in a root of it
	cargo build --workspace
	STRANGE_VMS="$(or $(FORM),all)" $(if $(FORM),,VM_MATRIX=write) \
	  $(if $(DEBIAN),CARGO_TARGET_$(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)_RUNNER="$(CURDIR)/packaging/test/vm-matrix.sh $(DEBIAN)") \
	  cargo test -p tests --test strange_vms -- --nocapture

.PHONY: versions-test
versions-test: setup-test web ## Services of the last release beside those of this tree, and an upgrade and back, on real guests
	scripts/earlier.sh
	cargo build --workspace
	target/debug/versions target/versions/build/debug

.PHONY: fuzz
fuzz: setup-fuzz web ## What reads strangers' bytes, under libFuzzer: TIME seconds (60) for each of WHAT (all of fuzz/corpus)
	for target in $(or $(WHAT),$(notdir $(wildcard fuzz/corpus/*))); do \
	  (cd fuzz && PATH="$(CURDIR)/target/tools/bin:$$PATH" RUSTC_BOOTSTRAP=1 \
	    cargo fuzz run --target-dir $(CARGO_TARGET_DIR)/fuzz $$target -- -max_total_time=$(or $(TIME),60) -timeout=20 -rss_limit_mb=4096); \
	done

.PHONY: mutants
mutants: setup-mutants ## Change snapshot-core's planner and pre-checks in one place at a time, and find changes that no test notices (docs/mutants.md): JOBS=1; WHAT=plan/create for a part
	mkdir -p target
	PATH="$(CURDIR)/target/tools/bin:$$PATH" env -u CARGO_TARGET_DIR PROPTEST_MAX_SHRINK_ITERS=0 \
	  cargo mutants -p snapshot-core --jobs $(or $(JOBS),1) --output target $(if $(WHAT),--re '$(WHAT)')

.PHONY: mutants-agent
mutants-agent: setup-test setup-mutants ## The same for what snapshot-agent decides before it removes, merges or writes a file, by unit tests and by tests on a libvirt daemon: JOBS=2; WHAT=owned for a part; UNITS=1 without a daemon
	PATH="$(CURDIR)/target/tools/bin:$$PATH" target/tools/bin/python3 scripts/mutants/agent.py --jobs $(or $(JOBS),2) $(if $(UNITS),--units) '$(WHAT)'

.PHONY: compose-test
compose-test: setup-compose web ## docker-compose.yml brought up, used, cut in two, put together and taken down, with a Docker of its own
	cargo build -p tests --bin compose --bin say
	packaging/compose/test.sh

# For another profile than that of releases, which takes long: make deb PROFILE=dev
PROFILE ?= dist
PROGRAMS = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
DEBS = target/deb

.PHONY: deb
deb: setup-dist web ## The Debian packages, in target/deb; PROFILE=dev for quick ones
	$(if $(filter dist,$(PROFILE)),scripts/dist-build.sh,cargo build --profile $(PROFILE) -p snapshot-api -p snapshot-agent -p snapshot-gateway -p snapctl)
	cargo run -q -p manuals -- target/manuals
	rm -rf $(DEBS)
	node scripts/third-party.mjs target/release-notes
	packaging/debian/build.sh $(PROGRAMS) target/manuals $(DEBS)
	lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs $(DEBS)/*.deb
	@ls -sh1 $(DEBS)/*.deb

.PHONY: dist
dist: deb ## A release in target/releases: programs, manuals, units, terms of others, SBOM, and the packages
	scripts/dist-tarball.sh $(PROGRAMS) target/manuals $(DEBS) target/releases

.PHONY: dist-check
dist-check: dist ## Build the release again in another folder and compare: the same bytes (as long as make dist)
	scripts/dist-check.sh

.PHONY: deb-test
deb-test: deb ## Install, start, upgrade, remove and purge the packages in a bare Debian 12 (as root), and follow the README there
	packaging/test/packages.sh $(DEBS)

.PHONY: bare-test
bare-test: setup-bare ## What is quick of make test in a Debian 12 and a Debian 13 with nothing but the base system (as root), and the units under their own systemd; DEBIAN=12 for one, WHOLE=1 for all of make test
	WHOLE=$(WHOLE) packaging/test/bare.sh $(or $(DEBIAN),12 13)

.PHONY: page
page: setup-build
	cd gateway/web && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund; }
	cd gateway/web && npm run --silent build

.PHONY: web
web: page ## Build the page and test it
	cd gateway/web && npm test --silent

.PHONY: setup-build setup-run setup-test setup-fuzz setup-mutants setup-compose setup-dist setup-bare
setup-build setup-run setup-test setup-fuzz setup-mutants setup-compose setup-dist setup-bare: setup-%:
	@scripts/setup.sh $*

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target gateway/web/node_modules gateway/web/dist
