package generate

import (
	"context"
	"errors"
	"fmt"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// FillHooks connect [Fill] to whoever started it. All are optional.
type FillHooks struct {
	Finish    <-chan struct{}                      // closed: end after the pictures under way
	OnPicture func(done, total int, prompt string) // a picture is in the folder; total: were missing
	Warn      func(string)                         // sentences about what was found odd
}

// Filled tells what Fill did.
type Filled struct {
	Made    int
	Skipped int // of the shard, and there already
}

// cacheMemory bounds the text embeddings that are kept.
const cacheMemory = 2 << 30

// Fill makes the pictures of a list's shard that are not in the folder dir yet. Several processes may fill one folder at
// the same time, each with its own shard or one after the other. Each picture is called by the numbers of its prompt and
// of the picture, as in 00003-01.png; metadata.jsonl lists those that are there with their prompts and seeds, so that the
// folder is a data set. generation.json keeps the settings, and a folder that was made with others is refused.
//
// Errors about settings are of type [*SettingError], before anything is read. When Finish is closed, Fill returns
// train.ErrInterrupted with what it made so far.
func Fill(ctx context.Context, e *engine.Engine, l List, dir string, h FillHooks) (filled Filled, err error) {
	if err := l.Validate(); err != nil {
		return filled, err
	}
	m, err := sd.LoadWithLoRA(e, l.Model, l.LoRA)
	if err != nil {
		return filled, err
	}
	defer m.Free()
	m.Compute = nn.Compute(l.Compute)
	for _, file := range l.Embeddings {
		c, err := sd.ReadConcept(file)
		if err != nil {
			return filled, err
		}
		if err := m.Learn(c); err != nil {
			return filled, fmt.Errorf("%s: %w", file, err)
		}
	}
	return FillWith(ctx, m, l, dir, h)
}

// FillWith is [Fill] with a model that is loaded already, as it is: Model, LoRA and Embeddings of the list are not read, but
// the folder remembers the files of the model and of the adapter.
func FillWith(ctx context.Context, m *sd.Model, l List, dir string, h FillHooks) (filled Filled, err error) {
	if err := l.Validate(); err != nil {
		return filled, err
	}
	defer engine.Sparing()()
	net := denoise.NewNetwork(m)
	defer net.Free()
	generators, err := l.generators(ctx, net, h) // before the folder is made, so that a bad setting leaves no trace
	if err != nil {
		return filled, err
	}
	settings, err := l.settings(m)
	if err != nil {
		return filled, err
	}
	folder := &pictureFolder{dir: dir, tasks: l.tasks(MaxImages)}
	if err := folder.open(settings); err != nil {
		return filled, err
	}
	// Whatever ends the work, the list of pictures fits those that are there.
	defer func() { err = errors.Join(err, folder.writeMetadata()) }()
	todo, skipped, err := l.missing(folder)
	if err != nil {
		return filled, err
	}
	filled.Skipped = skipped
	missing := len(todo)
	l.warnCut(m, todo, h)
	for len(todo) > 0 {
		select {
		case <-h.Finish:
			return filled, train.ErrInterrupted
		default:
		}
		now := l.together(todo)
		if err := folder.make(ctx, generators[now[0].guidance], now); err != nil {
			return filled, err
		}
		todo = todo[len(now):]
		for _, t := range now {
			filled.Made++
			if h.OnPicture != nil {
				h.OnPicture(filled.Made, missing, t.text)
			}
		}
	}
	return filled, nil
}

// together are the first pictures that go through the model at once.
func (l List) together(todo []task) []task {
	n := 1
	for n < min(l.Batch, len(todo)) && todo[n].guidance == todo[0].guidance {
		n++
	}
	return todo[:n]
}

// generators are those of each guidance scale that occurs.
func (l List) generators(ctx context.Context, net *denoise.Network, h FillHooks) (map[float64]*Generator, error) {
	point, err := net.Point(net.Model.UNetParams.Tensors)
	if err != nil {
		return nil, err
	}
	cache, err := data.OpenCache("", cacheMemory, h.Warn)
	if err != nil {
		return nil, err
	}
	out := map[float64]*Generator{}
	for _, t := range l.tasks(1) {
		if out[t.guidance] != nil {
			continue
		}
		options := l.Options
		options.Guidance = t.guidance
		if out[t.guidance], err = New(ctx, net, point, options, cache); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// missing lists the pictures of the shard that are not there, and counts those that are.
func (l List) missing(f *pictureFolder) (todo []task, there int, err error) {
	names, err := f.names()
	if err != nil {
		return nil, 0, err
	}
	for i, t := range l.tasks(l.Images) {
		switch {
		case !l.Shard.Has(i):
		case names[t.file()]:
			there++
		default:
			todo = append(todo, t)
		}
	}
	return todo, there, nil
}

// warnCut shows what of each prompt the text encoders cannot take.
func (l List) warnCut(m *sd.Model, todo []task, h FillHooks) {
	if h.Warn == nil {
		return
	}
	warn := func(what, text string) {
		for _, tower := range m.Towers {
			if _, end := tower.Tokenizer.Encode(text); end != "" {
				h.Warn(fmt.Sprintf("%s is longer than %d tokens; cut off: %q", what, tower.Tokenizer.Length(), end))
				return
			}
		}
	}
	warn("the negative prompt", l.Negative)
	last := -1
	for _, t := range todo {
		if t.prompt != last {
			last = t.prompt
			warn(fmt.Sprintf("prompt %d", t.prompt), t.text)
		}
	}
}
