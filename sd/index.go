package sd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/files"
)

// dropAbsentComponents makes a pipeline's index say [null, null] for components whose folders are not there, such as a safety
// checker that was never downloaded: diffusers refuses a pipeline whose index names what it lacks. An index that names
// nothing of the kind stays as it is, byte for byte.
func dropAbsentComponents(dir string) error {
	path := filepath.Join(dir, "model_index.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	index := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &index); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	changed := false
	for name, value := range index {
		var class [2]*string
		if json.Unmarshal(value, &class) != nil || class[0] == nil || class[1] == nil {
			continue // a setting, or an absent component that is called so
		}
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(name))); !os.IsNotExist(err) {
			continue
		}
		index[name], changed = json.RawMessage("[null, null]"), true
		if name == "safety_checker" {
			index["requires_safety_checker"] = json.RawMessage("false")
		}
	}
	if !changed {
		return nil
	}
	out, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return files.WriteBytes(path, append(out, '\n'))
}
