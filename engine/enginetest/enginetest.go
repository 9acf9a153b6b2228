// Package enginetest says which engine tests run on.
package enginetest

import "os"

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
