//go:build xla && linux && cgo

package engine

import (
	"fmt"
	"reflect"

	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/pjrt"
)

// footprint reads what the plugin said of a program. The bindings ask it at each compilation, but keep the answer in a
// field of their own; a version that names it otherwise fails here, which the tests notice before a user does.
func footprint(of compute.Executable) (Footprint, error) {
	field := reflect.Indirect(reflect.ValueOf(of)).FieldByName("exec")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*pjrt.LoadedExecutable]() || field.IsNil() {
		return Footprint{}, fmt.Errorf("%w: the bindings to XLA do not tell what memory a program takes", ErrInternal)
	}
	stats := field.Elem().FieldByName("OnDeviceMemoryUsageStats")
	bytes := func(name string) int64 { return stats.FieldByName(name).Int() }
	return Footprint{Temporary: bytes("Temporary"), Outputs: bytes("Outputs"), Reused: bytes("Aliases")}, nil
}
