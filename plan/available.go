package plan

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// available is the memory that this machine has left for a process: what Linux could free without swapping, or less where
// a control group sets a limit.
func available() (int64, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("this system does not say how much memory it has left; give --memory, such as --memory 16GB")
	}
	left := int64(-1)
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "MemAvailable:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 53); err == nil {
				left = kib << 10
			}
		}
	}
	if left < 0 {
		return 0, fmt.Errorf("/proc/meminfo does not say how much memory is left; give --memory, such as --memory 16GB")
	}
	return min(left, groupLeft("/proc/self/cgroup", "/sys/fs/cgroup", left)), nil
}

// groupLeft is what the process's control group (version 2) and those above it still allow, at most most.
func groupLeft(membership, root string, most int64) int64 {
	raw, err := os.ReadFile(membership)
	if err != nil {
		return most
	}
	for line := range strings.Lines(string(raw)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for dir := filepath.Join(root, filepath.Clean("/"+path)); ; dir = filepath.Dir(dir) {
			limit, okLimit := number(filepath.Join(dir, "memory.max"))
			used, okUsed := number(filepath.Join(dir, "memory.current"))
			if okLimit && okUsed {
				most = min(most, max(0, limit-used))
			}
			if dir == root || len(dir) <= len(root) {
				break
			}
		}
	}
	return most
}

// number reads a file of one number; "max" is none.
func number(path string) (int64, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

// ParseMemory reads a size such as 24GB, 24GiB, 512MB or a number of bytes.
func ParseMemory(s string) (int64, error) {
	text := strings.TrimSpace(strings.ToUpper(s))
	unit := 1.0
	for _, u := range []struct {
		suffix string
		bytes  float64
	}{{"TIB", 1 << 40}, {"GIB", 1 << 30}, {"MIB", 1 << 20}, {"KIB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}} {
		if number, ok := strings.CutSuffix(text, u.suffix); ok {
			text, unit = strings.TrimSpace(number), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n*unit >= 1) || n*unit > 1<<60 {
		return 0, fmt.Errorf("%q is not an amount of memory; write it like 24GB, 24GiB or 512MB", s)
	}
	return int64(n * unit), nil
}
