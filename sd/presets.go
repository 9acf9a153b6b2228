package sd

// SmallUNet is the UNet on which this program's speed is compared with others': two levels with cross-attention in both,
// 4.19 M parameters.
func SmallUNet() UNetConfig {
	return UNetConfig{
		SampleSize: 32, InChannels: 4, OutChannels: 4, Channels: []int{64, 128}, LayersPerBlock: []int{1, 1},
		DownAttention: []bool{true, true}, UpAttention: []bool{true, true}, Depth: []int{1, 1}, Heads: []int{4, 4},
		ContextWidth: 64, Groups: 8, Eps: 1e-5,
	}
}

// SD14UNet is the UNet of Stable Diffusion 1.x: unet/config.json of CompVis/stable-diffusion-v1-4, 859.5 M parameters.
func SD14UNet() UNetConfig {
	return UNetConfig{
		SampleSize: 64, InChannels: 4, OutChannels: 4, Channels: []int{320, 640, 1280, 1280}, LayersPerBlock: []int{2, 2, 2, 2},
		DownAttention: []bool{true, true, true, false}, UpAttention: []bool{false, true, true, true},
		Depth: []int{1, 1, 1, 1}, Heads: []int{8, 8, 8, 8}, ContextWidth: 768, Groups: 32, Eps: 1e-5,
	}
}

// SDXLUNet is the UNet of Stable Diffusion XL: unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, 2.57 G
// parameters.
func SDXLUNet() UNetConfig {
	return UNetConfig{
		SampleSize: 128, InChannels: 4, OutChannels: 4, Channels: []int{320, 640, 1280}, LayersPerBlock: []int{2, 2, 2},
		DownAttention: []bool{false, true, true}, UpAttention: []bool{true, true, false},
		Depth: []int{1, 2, 10}, Heads: []int{5, 10, 20}, ContextWidth: 2048, Groups: 32, Eps: 1e-5, LinearProj: true,
		TextTime: true, TimeIDWidth: 256, AddedInputDim: 2816,
	}
}
