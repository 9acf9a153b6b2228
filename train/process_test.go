package train

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// interrupt sends Ctrl-C to this process.
func interrupt(t *testing.T) {
	t.Helper()
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(os.Interrupt)
	}
	if err != nil {
		t.Skip("this system cannot send an interrupt to a process:", err)
	}
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not happen", what)
	}
}

func TestFirstInterruptFinishesSecondAborts(t *testing.T) {
	finish, ctx, stop := NotifyFinish(context.Background())
	defer stop()
	select {
	case <-finish:
		t.Fatal("asked to finish without an interrupt")
	default:
	}
	interrupt(t)
	within(t, "finish", finish)
	if ctx.Err() != nil {
		t.Fatalf("the first interrupt aborts: %v", ctx.Err())
	}
	interrupt(t)
	within(t, "abort", ctx.Done())
	if !errors.Is(context.Cause(ctx), ErrAborted) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
	stop()
	stop()
}

func TestNotifyFinishEndsWithItsParent(t *testing.T) {
	parent, cancel := context.WithCancel(context.Background())
	finish, ctx, stop := NotifyFinish(parent)
	defer stop()
	cancel()
	within(t, "cancel", ctx.Done())
	select {
	case <-finish:
		t.Error("asked to finish without an interrupt")
	default:
	}
	if errors.Is(context.Cause(ctx), ErrAborted) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
}

func TestPeakMemory(t *testing.T) {
	before, err := PeakMemory()
	if runtime.GOOS != "linux" {
		if !errors.Is(err, ErrNoMemoryFigures) {
			t.Errorf("error %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	const size = 256 << 20
	block := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		block[i] = 1
	}
	runtime.KeepAlive(block)
	after, err := PeakMemory()
	if err != nil {
		t.Fatal(err)
	}
	resident, err := ResidentMemory()
	if err != nil {
		t.Fatal(err)
	}
	if after < size || after < before || resident <= 0 || resident > after+(64<<20) {
		t.Errorf("peak %s then %s, resident %s", FormatBytes(before), FormatBytes(after), FormatBytes(resident))
	}
}

func TestStatusField(t *testing.T) {
	const status = "Name:\tresalign\nVmPeak:\t 99 kB\nVmHWM:\t  123456 kB\nVmX:\tmany kB\nVmY:\t9 MB\n"
	if n, err := statusField(strings.NewReader(status), "VmHWM"); n != 123456<<10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, field := range []string{"VmX", "VmY", "VmZ"} {
		if n, err := statusField(strings.NewReader(status), field); err == nil {
			t.Errorf("%s is %d", field, n)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 3 << 29: "1.5 GiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := FormatBytes(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
