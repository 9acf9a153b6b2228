package serve

import (
	"encoding/json"
	"io/fs"
	"slices"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/resalign/resalign/history"
	"github.com/resalign/resalign/train"
)

// state is what the page is told.
type state struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"`
	Method   string     `json:"method"`
	Engine   string     `json:"engine"`
	Started  *time.Time `json:"started"`
	Finished *time.Time `json:"finished"`
	Quiet    float64    `json:"quiet"` // seconds since the last event
	Done     int        `json:"done"`
	Total    int        `json:"total"`
	Left     float64    `json:"left"` // seconds, by the pace of the last steps; 0: not known
	Series   []series   `json:"series"`
	Previews []string   `json:"previews"`
	Problem  string     `json:"problem,omitempty"`
}

// Limits of what is read and shown.
const (
	maxSettings   = 16 << 20
	shownPreviews = 12
)

// state reads the folder as it is now. What cannot be read is left out, and said.
func (s *Server) state() state {
	out := state{Name: s.path, Kind: history.Training, Series: []series{}, Previews: []string{}}
	if content, err := s.small("run.json", maxSettings); err != nil {
		out.Problem = "run.json cannot be read"
	} else {
		var info train.RunInfo
		if err := json.Unmarshal(content, &info); err != nil {
			out.Problem = "run.json is damaged"
		}
		out.Finished = info.Finished
		if n := len(info.Sessions); n > 0 {
			out.Started, out.Engine = &info.Sessions[n-1].Started, info.Sessions[n-1].Engine
		}
	}
	if content, err := s.small("recipe.toml", maxSettings); err == nil {
		settings := map[string]any{}
		if toml.Unmarshal(content, &settings) == nil {
			out.Kind, out.Method, out.Total = history.Recognise(settings)
		}
	}
	log := s.log.read()
	out.Series, out.Done = log.series, log.step
	if !log.changed.IsZero() {
		out.Quiet = max(0, time.Since(log.changed).Seconds())
	}
	if log.problem != "" {
		out.Problem = log.problem
	}
	if out.Finished == nil && out.Total > out.Done {
		out.Left = log.pace * float64(out.Total-out.Done)
	}
	out.Previews = s.previews()
	return out
}

// previews are the names of the latest pictures, the newest first.
func (s *Server) previews() []string {
	out := []string{}
	entries, err := fs.ReadDir(s.root.FS(), "previews")
	if err != nil {
		return out // a run need not have any
	}
	for _, e := range slices.Backward(entries) { // named by their step: in the order of their making
		if e.Type().IsRegular() && previewName.MatchString(e.Name()) && len(out) < shownPreviews {
			out = append(out, e.Name())
		}
	}
	return out
}
