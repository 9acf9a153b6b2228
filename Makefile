# Builds and checks resalign. Needs Go 1.26 or newer; the version that go.mod names is fetched by Go itself.

export GOTOOLCHAIN := go1.27.3
export GOEXPERIMENT := simd
export CGO_ENABLED := 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BIN := bin/resalign

.PHONY: help build xla test test-xla check check-xla demo tiny results comparison bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/resalign
	go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o $(BIN) ./cmd/resalign

xla: ## build bin/resalign with the XLA engine; needs a C compiler
	CGO_ENABLED=1 go build -tags xla -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o $(BIN) ./cmd/resalign

# XLA compiles long and computes briefly here, so it is told to compile in a hurry. Of the packages denoise and unlearn the
# tests of what the method rests on are run: second derivatives, hypergradients, and a run that is stopped and goes on.
XLA_TESTS := CGO_ENABLED=1 XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)" RESALIGN_TEST_ENGINE="xla:$(RESALIGN_XLA_PLUGIN)" go test -tags xla

test-xla: xla ## run the tests of engine, derivatives and method on the XLA plugin that RESALIGN_XLA_PLUGIN names
	$(XLA_TESTS) ./engine/... ./ad ./nn ./svd ./hypergrad
	$(XLA_TESTS) -run 'Hypergradient|CrossProduct|GaussNewton|Unrolled|Metric|FinishThenResume|JobInterrupted' ./denoise ./unlearn ./finetune
	$(XLA_TESTS) -run Device ./plan
	XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)" $(BIN) verify --engine "xla:$(RESALIGN_XLA_PLUGIN)" --reference testdata/golden

check-xla: ## run vet and staticcheck on the code that only builds with XLA
	CGO_ENABLED=1 go vet -tags xla ./engine/... ./cmd/...
	CGO_ENABLED=1 go tool staticcheck -tags xla ./engine/... ./cmd/...

test: ## run all tests
	go test ./...

check: ## run vet, staticcheck and gofumpt
	go vet ./...
	go tool staticcheck ./...
	@unformatted="$$(go tool gofumpt -l .)" || exit 1; \
	if [ -n "$$unformatted" ]; then echo "not formatted as gofumpt does:"; echo "$$unformatted"; exit 1; fi

demo: build ## run the built-in experiment into demo/: minutes; goes on where it stopped
	$(BIN) demo --out demo

tiny: build ## unlearn, fine-tune and generate with the tiny model of the tests, into tiny/: seconds
	rm -rf tiny
	$(BIN) unlearn examples/tiny/recipe.toml
	$(BIN) finetune --model tiny/unlearned/model --data examples/tiny/people --method lora --steps 10 --out tiny/finetuned
	$(BIN) generate --model tiny/finetuned/model --prompt "a red star on a white background" --prompt "a blue square on a white background" --images 2 --out tiny/pictures
	$(BIN) inspect tiny/unlearned/lora.safetensors

results: build ## make docs/results.md's tables again: hours; goes on where it stopped
	$(BIN) study --out results --document docs/results.md

comparison: build ## compare all methods under all adaptations into docs/results.md: an hour; goes on where it stopped
	$(BIN) compare --out comparison --document docs/results.md

bench: build ## time the small UNet
	$(BIN) bench --preset small --what forward,generate,lora-step,step,lora-hvp,hvp

clean: ## remove what make makes
	rm -rf bin demo tiny
