package plugins

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// environment answers like os.Getenv, from pairs of names and values.
func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func touch(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSearchOrder(t *testing.T) {
	root := filepath.Join(t.TempDir(), "odd [name]*")
	user, beside := filepath.Join(root, "data", "resalign", "plugins"), filepath.Join(root, "bin", "plugins")
	cpu := filepath.Join(user, "cpu", "pjrt_c_api_cpu_plugin.so")
	cuda := filepath.Join(user, "cuda13", "xla_cuda_plugin.so")
	other := filepath.Join(user, "my_plugin.so")
	shipped := filepath.Join(beside, "pjrt_plugin_cpu.so")
	touch(t, cpu, cuda, other, shipped, filepath.Join(user, "nvidia", "libcublas.so"), filepath.Join(user, "plugin.txt"))
	places := search(environment("XDG_DATA_HOME", filepath.Join(root, "data"), "HOME", "/home/x"), filepath.Join(root, "bin", "resalign"))
	if len(places) != 2 || places[0].Path != user || places[1].Path != beside {
		t.Fatalf("looked in %+v", places)
	}
	if want := []string{cuda, other, cpu}; !slices.Equal(places[0].Found, want) {
		t.Errorf("found %v, not %v", places[0].Found, want)
	}
	if want := []string{shipped}; !slices.Equal(places[1].Found, want) {
		t.Errorf("found %v, not %v", places[1].Found, want)
	}
	// The variable excludes everything else.
	places = search(environment(Variable, "/a/b.so", "HOME", "/home/x"), filepath.Join(root, "bin", "resalign"))
	if len(places) != 1 || !slices.Equal(places[0].Found, []string{"/a/b.so"}) {
		t.Errorf("with %s set looked in %+v", Variable, places)
	}
}

func TestUserFolder(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"", "/home/x/.local/share/resalign/plugins"},
		{"relative", "/home/x/.local/share/resalign/plugins"},
		{"/data", "/data/resalign/plugins"},
	} {
		got, err := userFolder(environment("XDG_DATA_HOME", c.env, "HOME", "/home/x"))
		if err != nil || got != c.want {
			t.Errorf("XDG_DATA_HOME=%q: %s, %v; not %s", c.env, got, err, c.want)
		}
	}
	if got, err := userFolder(environment()); err == nil {
		t.Errorf("without a home the folder is %s", got)
	}
	if places := search(environment(), ""); len(places) != 0 {
		t.Errorf("without anything looked in %+v", places)
	}
}

func TestPlatform(t *testing.T) {
	for path, want := range map[string]string{
		"/cuda/pjrt_c_api_cpu_plugin.so": "cpu", "/x/xla_cuda_plugin.so": "cuda", "a/plugin.so": "other",
	} {
		if got := Platform(path); got != want {
			t.Errorf("%s is for %s, not %s", path, got, want)
		}
	}
}
