package bench

import "github.com/resalign/resalign/sd"

// forwardFLOPs counts the floating-point operations of one forward pass of a UNet in matrix products, convolutions and
// attention, a multiplication and an addition as two, for one sample of latents [side, side] and the prompt's tokens.
// Norms, activations and sums are left out: they are below a hundredth.
func forwardFLOPs(u sd.UNetConfig, side int) float64 {
	c := flopCounter{unet: u}
	time, top := u.TimeWidth(), len(u.Channels)-1
	c.linear(u.Channels[0], time, 1)
	c.linear(time, time, 1)
	if u.TextTime {
		c.linear(u.AddedInputDim, time, 1)
		c.linear(time, time, 1)
	}
	c.conv(u.InChannels, u.Channels[0], side)
	skips := []int{u.Channels[0]} // channels of what the way up gets from the way down
	channels := u.Channels[0]
	for i, width := range u.Channels {
		for range u.LayersPerBlock[i] {
			c.resnet(channels, width, side)
			if u.DownAttention[i] {
				c.transformer(width, u.Depth[i], side)
			}
			channels = width
			skips = append(skips, channels)
		}
		if i < top {
			side /= 2
			c.conv(channels, channels, side)
			skips = append(skips, channels)
		}
	}
	c.resnet(channels, channels, side)
	c.transformer(channels, u.Depth[top], side)
	c.resnet(channels, channels, side)
	for i := top; i >= 0; i-- {
		width := u.Channels[i]
		for range u.LayersPerBlock[i] + 1 {
			c.resnet(channels+skips[len(skips)-1], width, side)
			skips = skips[:len(skips)-1]
			if u.UpAttention[top-i] {
				c.transformer(width, u.Depth[i], side)
			}
			channels = width
		}
		if i > 0 {
			side *= 2
			c.conv(channels, channels, side)
		}
	}
	c.conv(channels, u.OutChannels, side)
	return c.total
}

type flopCounter struct {
	unet  sd.UNetConfig
	total float64
}

// linear is a linear layer on rows of input.
func (c *flopCounter) linear(in, out, rows int) {
	c.total += 2 * float64(in) * float64(out) * float64(rows)
}

// conv is a 3×3 convolution that makes pictures of a side.
func (c *flopCounter) conv(in, out, side int) { c.linear(9*in, out, side*side) }

func (c *flopCounter) resnet(in, out, side int) {
	c.conv(in, out, side)
	c.conv(out, out, side)
	c.linear(c.unet.TimeWidth(), out, 1)
	if in != out {
		c.linear(in, out, side*side)
	}
}

func (c *flopCounter) transformer(width, depth, side int) {
	pixels := side * side
	c.linear(width, width, 2*pixels) // in and out
	for range depth {
		c.linear(width, width, 4*pixels) // q, k, v and out of self-attention
		c.linear(pixels, width, 2*pixels)
		c.linear(width, width, 2*pixels) // q and out of cross-attention
		c.linear(c.unet.ContextWidth, width, 2*tokens)
		c.linear(tokens, width, 2*pixels)
		c.linear(width, 8*width, pixels) // feed-forward, gated
		c.linear(4*width, width, pixels)
	}
}

// passes is the least work of each kind in forward passes: going back through the activations costs one, through the
// weights another, and a Hessian–vector product twice its gradient.
func passes(what string) float64 {
	switch what {
	case Forward:
		return 1
	case LoRAStep:
		return 2
	case Step:
		return 3
	case LoRAHessianProduct:
		return 4
	case HessianProduct:
		return 6
	case Generate:
		return 2 * sampleSteps
	}
	return 0
}
