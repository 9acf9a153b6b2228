package denoise

import (
	"fmt"

	"github.com/resalign/resalign/data"
)

// square is the size of pictures where there are no buckets.
func (d *Dataset) square() data.Size {
	return data.Size{Width: d.preprocess.Resolution, Height: d.preprocess.Resolution}
}

// sortIntoBuckets finds the bucket of every picture, once.
func (d *Dataset) sortIntoBuckets() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.options.Buckets == nil || d.sizes != nil {
		return nil
	}
	sizes := make([][]data.Size, len(d.mixture))
	for i, part := range d.mixture {
		if part.Folder == nil {
			continue
		}
		for k := range part.Folder.Len() {
			picture, err := part.Folder.Size(k)
			if err != nil {
				return fmt.Errorf("data %s: %w", d.Name, err)
			}
			size, err := d.options.Buckets.For(picture)
			if err != nil {
				return fmt.Errorf("data %s: %s: %w", d.Name, part.Folder.Path(k), err)
			}
			if _, _, err := d.model.LatentSize(size.Height, size.Width); err != nil {
				return fmt.Errorf("data %s: %s: %w", d.Name, part.Folder.Path(k), err)
			}
			sizes[i] = append(sizes[i], size)
		}
	}
	d.sizes = sizes
	return nil
}

// pixels are those of a picture brought to its size: [3, height, width] in [−1, 1].
func (d *Dataset) pixels(picture *data.RGB, size data.Size, flip bool) ([]float32, error) {
	if d.sizes == nil {
		return d.preprocess.Apply(picture, flip)
	}
	fitted, err := d.preprocess.Fit(picture, size, flip)
	if err != nil {
		return nil, err
	}
	return fitted.Pixels(), nil
}
