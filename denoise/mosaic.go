package denoise

// mosaic replaces every square of block×block pixels by its mean, in place; squares at the right and lower edge may be
// cut. pixels is [channels, height, width].
func mosaic(pixels []float32, height, width, block int) {
	for from := 0; from < len(pixels); from += height * width {
		plane := pixels[from : from+height*width]
		for top := 0; top < height; top += block {
			for left := 0; left < width; left += block {
				flatten(plane, width, top, left, min(top+block, height), min(left+block, width))
			}
		}
	}
}

// flatten replaces a rectangle of a plane by its mean.
func flatten(plane []float32, width, top, left, bottom, right int) {
	sum := 0.0
	for y := top; y < bottom; y++ {
		for _, v := range plane[y*width+left : y*width+right] {
			sum += float64(v)
		}
	}
	mean := float32(sum / float64((bottom-top)*(right-left)))
	for y := top; y < bottom; y++ {
		for x := left; x < right; x++ {
			plane[y*width+x] = mean
		}
	}
}
