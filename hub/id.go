package hub

import (
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// ID names a model or a data set of the hub.
type ID struct {
	Owner, Name string
	Revision    string // a branch, a tag or a commit; empty: the branch main
	Dataset     bool   // it is a data set
}

const mainBranch = "main"

var (
	// The hub's own rule for names: letters, digits, "-", "_" and ".", no "--" and "..", neither "-" nor "." at the ends.
	namePattern     = regexp.MustCompile(`^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?$`)
	revisionPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./-]{0,254}$`)
	commitPattern   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// ParseID reads owner/name or owner/name@revision as the name of a model; ok is false for any other text.
func ParseID(text string) (id ID, ok bool) {
	repo, revision, hasRevision := strings.Cut(text, "@")
	owner, name, _ := strings.Cut(repo, "/")
	if !plainName(owner) || !plainName(name) || hasRevision && !plainRevision(revision) {
		return ID{}, false
	}
	return ID{Owner: owner, Name: name, Revision: revision}, true
}

// ParseFile reads the name of a model, or of a file of one: owner/name/path or owner/name@revision/path. A revision before a
// path holds no slash. ok is false for any other text.
func ParseFile(text string) (id ID, file string, ok bool) {
	if id, ok = ParseID(text); ok {
		return id, "", true
	}
	owner, rest, _ := strings.Cut(text, "/")
	name, file, _ := strings.Cut(rest, "/")
	id, ok = ParseID(owner + "/" + name)
	return id, file, ok && path.Clean(file) == file && filepath.IsLocal(filepath.FromSlash(file))
}

func plainName(s string) bool {
	return namePattern.MatchString(s) && !strings.Contains(s, "--") && !strings.Contains(s, "..")
}

// plainRevision tells whether a revision can be a path below refs.
func plainRevision(s string) bool {
	return revisionPattern.MatchString(s) && filepath.IsLocal(s) && !strings.Contains(s, "//") && !strings.Contains(s, "..") && !strings.HasSuffix(s, "/")
}

// Repo is owner/name.
func (id ID) Repo() string { return id.Owner + "/" + id.Name }

// String is owner/name, with @revision where there is one.
func (id ID) String() string {
	if id.Revision == "" {
		return id.Repo()
	}
	return id.Repo() + "@" + id.Revision
}

// revision is the branch, tag or commit that is meant.
func (id ID) revision() string {
	if id.Revision == "" {
		return mainBranch
	}
	return id.Revision
}

// what the ID names, in a sentence.
func (id ID) what() string {
	if id.Dataset {
		return "data set"
	}
	return "model"
}

// route is the ID's place below the hub's API, and folder that in the cache.
func (id ID) route() string { return id.plural() + "/" + id.Repo() }

func (id ID) folder() string { return id.plural() + "--" + id.Owner + "--" + id.Name }

func (id ID) plural() string {
	if id.Dataset {
		return "datasets"
	}
	return "models"
}

// isCommit tells whether the revision can never mean anything else.
func (id ID) isCommit() bool { return commitPattern.MatchString(id.Revision) }

// at is the same at a commit.
func (id ID) at(commit string) ID {
	id.Revision = commit
	return id
}
