// Package enginetest opens the engine that tests run on.
package enginetest

import (
	"os"
	"testing"

	"github.com/resalign/resalign/engine"
)

// Variable names the environment variable by which the tests of the method are run on another engine than the embedded
// one, such as xla:/path/to/plugin.so (tests work in different folders, so the path must be absolute).
const Variable = "RESALIGN_TEST_ENGINE"

// Spec is the engine to open in a test: the value of Variable, or go.
func Spec() string {
	if spec := os.Getenv(Variable); spec != "" {
		return spec
	}
	return "go"
}

// Open opens the engine of Spec, until the test ends.
func Open(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.Open(Spec())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}
