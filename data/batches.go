package data

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/resalign/resalign/random"
)

// Source is one set of pictures that batches draw from.
type Source struct {
	Size   int     // number of pictures
	Weight float64 // share of the draws, relative to the other sources
}

// Draw is one place of a batch: a picture of a source, mirrored or not.
type Draw struct {
	Source, Index int
	Flip          bool
}

// Batches says which pictures make up the batch of a step, as a pure function of (seed, purpose, step): a resumed run
// sees what an uninterrupted one sees. Draws are numbered through (step × batch size + place), so the sequence of
// pictures does not depend on the batch size either. Each source is walked in epochs, every epoch in a new random order,
// and none of its pictures comes again before all have been seen. It is safe for concurrent use.
type Batches struct {
	seed      uint64
	purpose   string
	batchSize int
	flip      bool
	sources   []Source
	share     []float64 // of source i among the draws that sources 0 … i−1 leave over
	phase     []float64

	mu     sync.Mutex
	epochs []epoch // the order each source was last asked for; it saves recomputing, it holds no state
}

type epoch struct {
	number int
	order  []int
}

// NewBatches prepares batches of batchSize draws. With flip, half of the draws are mirrored. Weights are relative to their
// sum; a source of weight 0 may be empty and is never drawn.
func NewBatches(seed uint64, purpose string, batchSize int, flip bool, sources ...Source) (*Batches, error) {
	if batchSize <= 0 {
		return nil, fmt.Errorf("the batch size is %d; use 1 or more", batchSize)
	}
	b := &Batches{seed: seed, purpose: purpose, batchSize: batchSize, flip: flip, sources: sources}
	for i, s := range sources {
		if !(s.Weight >= 0) || math.IsInf(s.Weight, 0) {
			return nil, fmt.Errorf("the weight of source %d is %v; use 0 or a positive number", i, s.Weight)
		}
		if s.Size < 0 || (s.Size == 0 && s.Weight > 0) {
			return nil, fmt.Errorf("source %d has no pictures but weight %v; give it pictures or weight 0", i, s.Weight)
		}
	}
	b.share, b.phase = make([]float64, len(sources)), make([]float64, len(sources))
	b.epochs = make([]epoch, len(sources))
	rest := 0.0
	for i := len(sources) - 1; i >= 0; i-- {
		if rest += sources[i].Weight; sources[i].Weight > 0 {
			b.share[i] = sources[i].Weight / rest // exactly 1 for the last source that has a weight
		}
		b.phase[i] = random.New(seed, purpose, "mixture", i).Float64()
		b.epochs[i].number = -1
	}
	if rest == 0 {
		return nil, errors.New("there is nothing to draw from; give at least one source pictures and a weight")
	}
	if math.IsInf(rest, 0) {
		return nil, errors.New("the weights of the sources are too large to add up; use shares such as 0.8 and 0.2")
	}
	return b, nil
}

// At returns the draws of a step, counted from 0.
func (b *Batches) At(step int) []Draw {
	out := make([]Draw, b.batchSize)
	for place := range out {
		number := step*b.batchSize + place
		source, turn := b.source(number)
		out[place] = Draw{Source: source, Index: b.index(source, turn)}
		if b.flip {
			out[place].Flip = random.New(b.seed, b.purpose, "flip", number).Float64() < 0.5
		}
	}
	return out
}

// source returns whose turn draw number is, and how many draws that source had before.
//
// Sources take turns as evenly as their weights allow (systematic sampling) instead of by lot: after n draws each has had
// its share of n to within one per source, so that "20 %" is 20 % in a short run too. The count of earlier turns has a
// closed form, ⌊n·share + phase⌋; more than two sources are split off one after the other.
func (b *Batches) source(number int) (source, turn int) {
	for i, share := range b.share {
		before := int(float64(number)*share + b.phase[i])
		after := int(float64(number+1)*share + b.phase[i])
		if share == 1 {
			before, after = number, number+1
		}
		if after > before {
			return i, before
		}
		number -= before
	}
	panic("data: no source has a share of 1") // NewBatches gives the last weighted source exactly 1
}

// index returns the picture that a source shows on its turn.
func (b *Batches) index(source, turn int) int {
	size := b.sources[source].Size
	b.mu.Lock()
	defer b.mu.Unlock()
	e := &b.epochs[source]
	if number := turn / size; e.number != number {
		*e = epoch{number, random.New(b.seed, b.purpose, "order", source, number).Perm(size)}
	}
	return e.order[turn%size]
}
