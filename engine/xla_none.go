//go:build !(xla && linux && cgo)

package engine

import "github.com/gomlx/compute"

// HasXLA tells whether this program was built with the XLA engine.
const HasXLA = false

func openPlugin(string, bool, *trouble) (compute.Backend, string, error) { return nil, "", errNoXLA }

func footprint(compute.Executable) (Footprint, error) { return Footprint{}, errNoXLA }
