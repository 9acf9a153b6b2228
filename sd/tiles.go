package sd

import (
	"context"
	"fmt"
	"slices"
)

// VAEMemory says how the autoencoder saves memory. The zero value is none of it: the whole batch at once.
type VAEMemory struct {
	// Slicing decodes the pictures of a batch one at a time. A picture is then the same as in a batch of one.
	Slicing bool
	// Tile is the side in pixels of the squares that larger pictures are cut into, one in memory at a time; 0: pictures
	// stay whole. Neighbours overlap by a quarter and are blended linearly there. The autoencoder then sees less of its
	// surroundings, so that pictures differ a little from whole ones.
	Tile int
}

// overlapShare is 1 over the part of a tile that its neighbour covers as well (diffusers' tile_overlap_factor, 0.25).
const overlapShare = 4

// TileSize is the side of tiles to use where size is wanted, in pixels; 0 stands for the size of the pictures that the
// autoencoder was trained on.
func (m *Model) TileSize(size int) (int, error) {
	multiple := overlapShare * m.VAE.Config.Downscale()
	if size == 0 {
		size = m.VAE.Config.SampleSize
		if size%multiple != 0 {
			return 0, fmt.Errorf("sample_size = %d of this VAE is no multiple of %d and makes no tiles; give a tile size that is one", size, multiple)
		}
	}
	if size < multiple || size%multiple != 0 {
		return 0, fmt.Errorf("tiles of %d pixels do not fit this VAE; use a multiple of %d", size, multiple)
	}
	return size, nil
}

// DecodeSparing is DecodeBatch with less memory. A tile must be what TileSize returned.
func (m *Model) DecodeSparing(ctx context.Context, latents []float32, batch, h, w int, s VAEMemory) ([]float32, error) {
	d := m.VAE.Config.Downscale()
	cut := s.Tile > 0 && max(h, w) > s.Tile/d
	if !cut && (!s.Slicing || batch == 1) {
		return m.DecodeBatch(ctx, latents, batch, h, w)
	}
	grid := tiling{tile: s.Tile / d, extent: s.Tile / overlapShare, outHeight: h * d, outWidth: w * d}
	size := m.VAE.Config.LatentChannels * h * w
	if len(latents) != batch*size {
		return nil, fmt.Errorf("%d latents are not %d pictures of %d×%d×%d", len(latents), batch, m.VAE.Config.LatentChannels, h, w)
	}
	var out []float32
	for one := range slices.Chunk(latents, size) {
		var picture []float32
		var err error
		if cut {
			picture, err = grid.run(plane{one, h, w}, func(part plane) ([]float32, error) {
				return m.Decode(ctx, part.values, part.h, part.w)
			})
		} else {
			picture, err = m.Decode(ctx, one, h, w)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, picture...)
	}
	return out, nil
}

// EncodePictureTiled is EncodePicture by tiles of the given side in pixels, which must be what TileSize returned.
func (m *Model) EncodePictureTiled(ctx context.Context, pixels []float32, height, width, tile int) (Moments, error) {
	if max(height, width) <= tile {
		return m.EncodePicture(ctx, pixels, height, width)
	}
	if _, _, err := m.LatentSize(height, width); err != nil {
		return Moments{}, err
	}
	d := m.VAE.Config.Downscale()
	grid := tiling{tile: tile, extent: tile / d / overlapShare, outHeight: height / d, outWidth: width / d}
	both, err := grid.run(plane{pixels, height, width}, func(part plane) ([]float32, error) {
		moments, err := m.encode(ctx, part.values, part.h, part.w)
		return append(moments.Mean, moments.LogVariance...), err
	})
	half := len(both) / 2
	return Moments{Mean: both[:half:half], LogVariance: both[half:]}, err
}

// plane is an array [channels, h, w].
type plane struct {
	values []float32
	h, w   int
}

func (p plane) channels() int { return len(p.values) / (p.h * p.w) }

// part is the rectangle at y, x of at most size × size.
func (p plane) part(y, x, size int) plane {
	q := plane{h: min(size, p.h-y), w: min(size, p.w-x)}
	for c := range p.channels() {
		for row := range q.h {
			start := (c*p.h+y+row)*p.w + x
			q.values = append(q.values, p.values[start:start+q.w]...)
		}
	}
	return q
}

// tiling maps a plane piece by piece to one of another scale.
type tiling struct {
	tile                int // side of a piece of the input
	extent              int // of the blending, in the output
	outHeight, outWidth int
}

// run works through the tiles row by row, each beginning three quarters of a tile after the one before, and keeps two rows
// of them. What a tile shares with those above and to the left fades from theirs to its own.
func (g tiling) run(in plane, f func(part plane) ([]float32, error)) ([]float32, error) {
	step := g.tile - g.tile/overlapShare
	limit := (overlapShare - 1) * g.extent // what is kept of a tile's result, each way
	var out plane
	var above []plane
	for y := 0; y < in.h; y += step {
		var row []plane
		for x := 0; x < in.w; x += step {
			part := in.part(y, x, g.tile)
			values, err := f(part)
			if err != nil {
				return nil, err
			}
			next := plane{values, part.h * g.outHeight / in.h, part.w * g.outWidth / in.w}
			if above != nil {
				next.fadeFromAbove(above[len(row)], g.extent)
			}
			if len(row) > 0 {
				next.fadeFromLeft(row[len(row)-1], g.extent)
			}
			if out.values == nil {
				out = plane{make([]float32, next.channels()*g.outHeight*g.outWidth), g.outHeight, g.outWidth}
			}
			out.put(next, y/step*limit, x/step*limit, limit)
			row = append(row, next)
		}
		above = row
	}
	return out.values, nil
}

// put copies the first limit rows and columns of a tile to y, x.
func (p plane) put(tile plane, y, x, limit int) {
	h, w := min(limit, tile.h), min(limit, tile.w)
	for c := range p.channels() {
		for row := range h {
			from := (c*tile.h + row) * tile.w
			copy(p.values[(c*p.h+y+row)*p.w+x:], tile.values[from:from+w])
		}
	}
}

// fadeFromAbove blends the last rows of a into the first of p.
func (p plane) fadeFromAbove(a plane, extent int) {
	extent = min(a.h, p.h, extent)
	for c := range p.channels() {
		for row := range extent {
			share := float64(row) / float64(extent)
			for x := range p.w {
				mix(&p.values[(c*p.h+row)*p.w+x], a.values[(c*a.h+a.h-extent+row)*a.w+x], share)
			}
		}
	}
}

// fadeFromLeft blends the last columns of a into the first of p.
func (p plane) fadeFromLeft(a plane, extent int) {
	extent = min(a.w, p.w, extent)
	for line := range p.channels() * p.h {
		for x := range extent {
			mix(&p.values[line*p.w+x], a.values[line*a.w+a.w-extent+x], float64(x)/float64(extent))
		}
	}
}

func mix(to *float32, from float32, share float64) {
	*to = from*float32(1-share) + *to*float32(share)
}
