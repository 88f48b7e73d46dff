# One command for each thing a contributor does. `make` alone lists them.

GO ?= go
FUZZTIME ?= 20s

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

.PHONY: test
test: ## the tests, as the README has them
	$(GO) test ./...

.PHONY: test-short
test-short: ## the tests without those that take seconds each
	$(GO) test -short ./...

.PHONY: test-long
test-long: ## the tests at full size, in random order, then under the race detector
	$(GO) test -shuffle=on . -long
	$(GO) test -shuffle=on ./p2ptest -p2ptest.large -timeout 40m
	$(GO) test -shuffle=on ./internal/natlab/labpeer -long
	$(GO) test -race -shuffle=on ./...

.PHONY: stress
stress: ## the tests again and again beside busy cores, with and without -race
	bash .ci/stress

.PHONY: lint
lint: ## gofmt, vet, staticcheck, and golangci-lint where it is installed
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: its checks were left out"; fi

.PHONY: bench
bench: ## the benchmarks beside the same thing assembled by hand
	$(GO) test -run '^$$' -bench . -benchmem . ./topic

.PHONY: golden
golden: ## write testdata/messages.golden anew after a text was changed
	$(GO) test -p 1 -run Golden $$(grep -rl --include='*_test.go' golden.Check . | xargs -n 1 dirname | sort -u) -update

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s) each
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

.PHONY: check
check: ## everything that CI runs (Linux, as root)
	bash .ci/run
