//go:build linux || darwin

package hub

import "golang.org/x/sys/unix"

// freeBytes is what may still be written to the disk that holds a folder.
func freeBytes(folder string) (free int64, known bool) {
	var s unix.Statfs_t
	if unix.Statfs(folder, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
