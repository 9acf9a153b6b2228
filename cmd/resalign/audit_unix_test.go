//go:build unix

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

func TestAuditInterrupted(t *testing.T) {
	root, file := auditWorld(t)
	whole, parts := filepath.Join(root, "whole"), filepath.Join(root, "parts")
	succeed(t, "audit", file, "--out", whole)
	again := interrupted(t, "making pictures", "audit", file, "--out", parts)
	if again != commandLine("resalign", "audit", file, "--out", parts) {
		t.Errorf("it goes on with %s", again)
	}
	succeed(t, strings.Fields(again)[1:]...)
	for _, name := range []string{"results.json", "report.html"} {
		if !bytes.Equal(read(t, whole, name), read(t, parts, name)) {
			t.Errorf("%s differs from that of an audit without a break", name)
		}
	}
}
