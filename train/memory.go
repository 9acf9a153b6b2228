package train

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// ErrNoMemoryFigures is returned where the system does not tell a process's memory.
var ErrNoMemoryFigures = errors.New("this system does not report the memory of a process in /proc/self/status")

// PeakMemory returns the largest resident memory of this process so far, in bytes (VmHWM of Linux). Device memory is
// not part of it. On other systems it returns [ErrNoMemoryFigures].
func PeakMemory() (int64, error) { return processMemory("VmHWM") }

// ResidentMemory returns the resident memory of this process now, in bytes (VmRSS of Linux). On other systems it
// returns [ErrNoMemoryFigures].
func ResidentMemory() (int64, error) { return processMemory("VmRSS") }

func processMemory(field string) (int64, error) {
	f, err := os.Open("/proc/self/status")
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrNoMemoryFigures
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return statusField(f, field)
}

// statusField reads a line such as "VmHWM:	  123456 kB", and returns bytes.
func statusField(r io.Reader, field string) (int64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != field {
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		kibibytes, err := strconv.ParseInt(number, 10, 53)
		if err != nil || unit != "kB" || kibibytes < 0 {
			return 0, fmt.Errorf("memory figure %s is %q; expected a number of kB", field, strings.TrimSpace(value))
		}
		return kibibytes << 10, nil
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, ErrNoMemoryFigures
}

// FormatBytes writes a size for people, e.g. "1.5 GiB".
func FormatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1023.95 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
