# ImpossibleDB. `make` builds; `make help` lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X github.com/impossibledb/idb/cmd/internal/node.Version=$(VERSION)

# What `make fuzz` gives each target, and `make soak` in all.
FUZZTIME ?= 20s
SOAKTIME ?= 10m
# Where `make sim` begins and how many seeds it runs.
FIRST ?= 1
SEEDS ?= 2000

# Seeded runs of `make rules`.
RULES ?= 50000

.PHONY: build
build: ## build bin/idb
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/idb ./cmd/idb

.PHONY: demo
demo: build ## three nodes, a cluster, the cities of the world; until Ctrl-C (DEMO_ONCE=1: ends by itself)
	@bash scripts/demo.sh

.PHONY: test
test: ## all tests (about five minutes on two cores)
	$(GO) test -timeout 20m ./...

.PHONY: race
race: ## all tests under the race detector (slow)
	$(GO) test -race -short -timeout 60m ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@FUZZTIME=$(FUZZTIME) bash scripts/fuzz.sh

.PHONY: golden
golden: ## write golden output anew; review the diff
	@bash scripts/golden.sh

.PHONY: bench
bench: ## benchmarks of the packages (scripts/compare races the whole against other databases)
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: check
check: ## gofmt, vet, staticcheck, known vulnerabilities
	@bash scripts/check.sh

.PHONY: rules
rules: ## state machines and leaders stepped over plain logs: RULES seeded runs of each ring
	$(GO) test ./cmd/internal/rules -count 1 -v -rules.seeds $(RULES)

.PHONY: mutants
mutants: ## break the product in every way of fsm/mutant; the tests have to notice (MUTANTS=name,name: those)
	$(GO) run ./cmd/internal/mutants $(if $(MUTANTS),-only $(MUTANTS))

.PHONY: sim
sim: ## SEEDS random disasters in virtual time, from FIRST on, and all scenarios; SEED=n: that one; LOAD=a,b: only these workloads
	@cd cmd/internal/sim && GODEBUG=tracebacklabels=1 GOGC=400 $(GO) test -timeout 2h $(if $(SEED),-run TestSeeds -v -seed $(SEED),-run 'TestSeeds|TestScenarios' -seeds $(SEEDS) -first $(FIRST)) $(if $(LOAD),-load $(LOAD))

.PHONY: soak
soak: ## mixed load and random kills for SOAKTIME, judged by checkers
	SOAKTIME=$(SOAKTIME) bash scripts/soak.sh

.PHONY: clean
clean: ## remove what make built
	rm -rf bin

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10
