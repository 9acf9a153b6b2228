package programs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkPrivate refuses a folder that others can write to, since what is in it will run.
func checkPrivate(folder string) error {
	info, err := os.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // made when it is needed, for this user alone
	}
	if err != nil {
		return fmt.Errorf("compiled programs: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("compiled programs: %s is not a folder; set %s to another, or to nothing", folder, Variable)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm()&0o022 != 0 || ok && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("compiled programs: others can write to %s, and what is in it would run as you; take it as your own (chmod 700), or set %s to another folder", folder, Variable)
	}
	return nil
}
