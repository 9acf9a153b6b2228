package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names inside a run folder.
const (
	recipeFile     = "recipe.toml"
	runFile        = "run.json"
	eventsFile     = "events.jsonl"
	lockFile       = "lock"
	checkpointsDir = "checkpoints"
	previewsDir    = "previews"
)

// maxRunFileBytes bounds recipe.toml and run.json, which have some kilobytes.
const maxRunFileBytes = 16 << 20

var errLocked = errors.New("locked by another process")

// Session describes one process that worked on a run.
type Session struct {
	Program string            `json:"program"` // version of this program
	Go      string            `json:"go"`      // Go version; filled in when empty
	Engine  string            `json:"engine"`  // backend and device
	Seeds   map[string]uint64 `json:"seeds"`
	Command []string          `json:"command"` // the command line
	Started time.Time         `json:"started"` // filled in when zero
}

// RunInfo is the content of run.json.
type RunInfo struct {
	Sessions []Session  `json:"sessions"` // the first one created the run, each other one resumed it
	Finished *time.Time `json:"finished,omitempty"`
}

// RunDir is the folder of one run, locked for this process until Close:
//
//	recipe.toml    the resolved recipe
//	run.json       who ran it, with what ([RunInfo])
//	events.jsonl   what happened ([EventLog])
//	checkpoints/   where it can continue ([Checkpoints])
//	previews/      pictures on the way
//	lock           held while a process works on the run
type RunDir struct {
	path   string
	recipe []byte
	info   RunInfo
	lock   *os.File
	files  fileSystem
}

// CreateRun makes a new run folder at path, which must not exist or be empty; what is there is never overwritten. An
// earlier attempt with the same recipe that was stopped before the run began may be there.
func CreateRun(path string, recipe []byte, session Session) (*RunDir, error) {
	return createRun(disk{}, path, recipe, session)
}

func createRun(files fileSystem, path string, recipe []byte, session Session) (run *RunDir, err error) {
	if len(recipe) > maxRunFileBytes {
		return nil, fmt.Errorf("recipe has %s; at most %s are possible", FormatBytes(int64(len(recipe))), FormatBytes(maxRunFileBytes))
	}
	if err := refuseOccupied(path, recipe); err != nil {
		return nil, err
	}
	if err := files.mkdirAll(path); err != nil {
		return nil, fmt.Errorf("cannot create run folder %s: %w", path, err)
	}
	lock, err := lockRun(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	// Another process may have created a run between the first look and the lock.
	if err := refuseOccupied(path, recipe); err != nil {
		return nil, err
	}
	run = &RunDir{path: path, recipe: bytes.Clone(recipe), lock: lock, files: files}
	run.addSession(session)
	if err := run.populate(); err != nil {
		return nil, fmt.Errorf("cannot create run folder %s: %w", path, err)
	}
	return run, nil
}

// populate fills the folder. run.json comes last: with it the folder is a run.
func (r *RunDir) populate() error {
	if err := r.files.mkdirAll(r.CheckpointsPath()); err != nil {
		return err
	}
	if err := r.files.mkdirAll(r.PreviewsPath()); err != nil {
		return err
	}
	if err := replaceFile(r.files, r.EventsPath(), nil); err != nil {
		return err
	}
	if err := replaceFile(r.files, filepath.Join(r.path, recipeFile), r.recipe); err != nil {
		return err
	}
	return r.writeInfo()
}

// refuseOccupied returns an error unless a run can be created at path without loss.
func refuseOccupied(path string, recipe []byte) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot use %s as a run folder: %w", path, err)
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == runFile }) {
		state := "an unfinished run"
		if info, err := readInfo(path); err == nil && info.Finished != nil {
			state = "a finished run"
		}
		return fmt.Errorf("folder %s holds %s; resume it or choose another folder", path, state)
	}
	for _, entry := range entries {
		left, err := leftOver(path, entry, recipe)
		if err != nil {
			return fmt.Errorf("cannot use %s as a run folder: %w", path, err)
		}
		if !left {
			return fmt.Errorf("folder %s is not empty (it holds %s) and is no run; choose another folder", path, entry.Name())
		}
	}
	return nil
}

// leftOver says whether an entry is of an attempt to create the same run that was stopped early.
func leftOver(path string, entry fs.DirEntry, recipe []byte) (bool, error) {
	at := filepath.Join(path, entry.Name())
	switch name := entry.Name(); name {
	case lockFile:
		return entry.Type().IsRegular(), nil
	case temporaryPrefix + eventsFile, temporaryPrefix + recipeFile, temporaryPrefix + runFile:
		return entry.Type().IsRegular(), nil
	case eventsFile, recipeFile:
		if !entry.Type().IsRegular() {
			return false, nil
		}
		data, err := readSmall(at, maxRunFileBytes)
		return len(data) == 0 || name == recipeFile && bytes.Equal(data, recipe), err
	case checkpointsDir, previewsDir:
		if !entry.IsDir() {
			return false, nil
		}
		inside, err := os.ReadDir(at)
		return len(inside) == 0, err
	}
	return false, nil
}

// IsRun tells whether the folder at path holds a run, finished or not, that ResumeRun can open.
func IsRun(path string) bool {
	there, err := exists(filepath.Join(path, runFile))
	return there || err != nil // what cannot be looked at may be one
}

// ResumeRun opens the run folder at path to continue it. recipe must have the bytes that the run was created with; nil
// takes the stored one, see Recipe. A finished run can be opened as well, see Info.
func ResumeRun(path string, recipe []byte, session Session) (*RunDir, error) {
	return resumeRun(disk{}, path, sameBytes(recipe), session)
}

// ResumeRunIf is [ResumeRun] for recipes that may be written in several ways: same gets the stored one and returns an
// error that says how the recipe at hand differs from it, or nil to continue the run. The stored one stays as it is.
func ResumeRunIf(path string, same func(stored []byte) error, session Session) (*RunDir, error) {
	return resumeRun(disk{}, path, same, session)
}

// CheckCreate returns the error, if any, with which [CreateRun] would refuse the folder, and changes nothing: to be asked
// before work that takes long.
func CheckCreate(path string, recipe []byte) error { return refuseOccupied(path, recipe) }

// CheckResume returns what run.json holds, or the error with which [ResumeRunIf] would refuse the folder but for its lock,
// and changes nothing.
func CheckResume(path string, same func(stored []byte) error) (RunInfo, error) {
	if err := mustBeRun(path); err != nil {
		return RunInfo{}, err
	}
	_, info, err := readRun(path, same)
	return info, err
}

// sameBytes accepts a stored recipe of exactly these bytes, or for nil any.
func sameBytes(recipe []byte) func(stored []byte) error {
	return func(stored []byte) error {
		if recipe != nil && !bytes.Equal(recipe, stored) {
			return fmt.Errorf("line %d differs from its %s", firstDifference(recipe, stored), recipeFile)
		}
		return nil
	}
}

func resumeRun(files fileSystem, path string, same func(stored []byte) error, session Session) (run *RunDir, err error) {
	if err := mustBeRun(path); err != nil {
		return nil, err
	}
	lock, err := lockRun(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	stored, info, err := readRun(path, same)
	if err != nil {
		return nil, err
	}
	run = &RunDir{path: path, recipe: stored, info: info, lock: lock, files: files}
	run.addSession(session)
	if err := run.writeInfo(); err != nil {
		return nil, fmt.Errorf("cannot resume %s: %w", path, err)
	}
	return run, nil
}

// mustBeRun returns an error unless there is a run at path.
func mustBeRun(path string) error {
	if there, err := exists(filepath.Join(path, runFile)); err != nil {
		return fmt.Errorf("cannot resume %s: %w", path, err)
	} else if !there {
		return fmt.Errorf("cannot resume %s: it holds no run (%s is missing); start a new run or name another folder", path, runFile)
	}
	return nil
}

// readRun reads what the folder of a run says about it, if its recipe is the same.
func readRun(path string, same func(stored []byte) error) (stored []byte, info RunInfo, err error) {
	stored, err = readSmall(filepath.Join(path, recipeFile), maxRunFileBytes)
	if err != nil {
		return nil, info, fmt.Errorf("cannot resume %s: %w", path, err)
	}
	if err := same(stored); err != nil {
		return nil, info, fmt.Errorf("cannot resume %s with another recipe: %w; restore the recipe or start a new run", path, err)
	}
	info, err = readInfo(path)
	if err != nil {
		return nil, info, fmt.Errorf("cannot resume %s: %w", path, err)
	}
	return stored, info, nil
}

// firstDifference returns the number of the first line that differs.
func firstDifference(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return 1 + bytes.Count(a[:n], []byte("\n"))
}

func readInfo(path string) (RunInfo, error) {
	var info RunInfo
	data, err := readSmall(filepath.Join(path, runFile), maxRunFileBytes)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return info, fmt.Errorf("%s is damaged: %w; restore it or start a new run", filepath.Join(path, runFile), err)
	}
	return info, nil
}

func (r *RunDir) addSession(s Session) {
	if s.Go == "" {
		s.Go = runtime.Version()
	}
	if s.Started.IsZero() {
		s.Started = time.Now()
	}
	s.Started = s.Started.UTC()
	r.info.Sessions = append(r.info.Sessions, s)
}

func (r *RunDir) writeInfo() error {
	data, err := json.MarshalIndent(r.info, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(r.files, filepath.Join(r.path, runFile), append(data, '\n'))
}

// lockRun takes the lock of a run folder. The number of the process in the file is for the error message only.
func lockRun(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of run folder %s: %w", path, err)
	}
	if err := tryLock(f); err != nil {
		defer f.Close()
		if !errors.Is(err, errLocked) {
			return nil, fmt.Errorf("cannot lock run folder %s: %w; use a file system with locks", path, err)
		}
		holder := "another process"
		if data, err := readSmall(f.Name(), 32); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				holder = fmt.Sprintf("process %d", pid)
			}
		}
		return nil, fmt.Errorf("run folder %s is in use by %s; wait for it or choose another folder: %w", path, holder, errLocked)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write the lock of run folder %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Finish records that the run came to its end.
func (r *RunDir) Finish() error {
	now := time.Now().UTC()
	r.info.Finished = &now
	if err := r.writeInfo(); err != nil {
		return fmt.Errorf("cannot mark run %s as finished: %w", r.path, err)
	}
	return nil
}

// Close gives the lock back.
func (r *RunDir) Close() error { return r.lock.Close() }

// Path returns the run folder.
func (r *RunDir) Path() string { return r.path }

// Recipe returns the bytes of the run's recipe.
func (r *RunDir) Recipe() []byte { return bytes.Clone(r.recipe) }

// Info returns what run.json holds. Its Finished is nil until Finish.
func (r *RunDir) Info() RunInfo { return r.info }

// EventsPath returns the path of the event log, for [OpenEventLog].
func (r *RunDir) EventsPath() string { return filepath.Join(r.path, eventsFile) }

// CheckpointsPath returns the folder of the checkpoints, for [OpenCheckpoints].
func (r *RunDir) CheckpointsPath() string { return filepath.Join(r.path, checkpointsDir) }

// PreviewsPath returns the folder of preview pictures.
func (r *RunDir) PreviewsPath() string { return filepath.Join(r.path, previewsDir) }
