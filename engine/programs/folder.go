package programs

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/engine/plugins"
)

// Folder is where compiled programs are to be kept, or nothing: the folder that Variable names; if it is not set, the user's
// own, if it exists: nothing is kept without the user's knowing, and `resalign doctor --install-xla` makes it.
func Folder() (string, error) {
	if folder, set := os.LookupEnv(Variable); set {
		if folder == "" {
			return "", nil
		}
		folder, err := filepath.Abs(folder)
		if err != nil {
			return "", fmt.Errorf("%s: %w", Variable, err)
		}
		return folder, checkPrivate(folder)
	}
	folder, err := UserFolder()
	if err != nil {
		return "", nil // there is no such folder
	}
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return "", nil
	}
	return folder, checkPrivate(folder)
}

// UserFolder is the user's own folder of compiled programs, beside that of plugins.
func UserFolder() (string, error) {
	folder, err := plugins.UserFolder()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(folder), "programs"), nil
}
