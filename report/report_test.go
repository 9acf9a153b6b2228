package report

import (
	"os"
	"path/filepath"
	"testing"
)

func TestX(t *testing.T) {
	path := filepath.Join(t.ArtifactDir(), "report.html")
	if err := Write(path, samplePage(t)); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	t.Log(len(b))
	p := samplePage(t)
	t.Log("\n" + TextTable(p.Rows, p.Order, p.Labels))
	t.Log("\n" + p.Summary)
}
