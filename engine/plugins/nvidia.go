package plugins

import (
	"os"
	"path/filepath"
)

// MissingNVIDIALibraries tells whether a plugin is one for NVIDIA GPUs beside which their libraries are not installed, and
// the folder in which it looks for a folder nvidia: ../nvidia from its own (the RPATH of jax-cuda13-pjrt). The plugin also
// finds libraries that are installed in the system.
func MissingNVIDIALibraries(path string) (folder string, missing bool) {
	if Platform(path) != "cuda" {
		return "", false
	}
	folder = filepath.Dir(filepath.Dir(path))
	_, err := os.Stat(filepath.Join(folder, "nvidia"))
	return folder, err != nil
}

// NVIDIALibraries lists the packages of the Python package index that hold what the CUDA 13 plugin loads, as
// jax-cuda13-plugin 0.12.0.1 requires them.
func NVIDIALibraries() []string {
	return []string{
		"nvidia-cublas>=13.0.0.19", "nvidia-cuda-cupti>=13.0.48", "nvidia-cuda-nvcc>=13.0.48", "nvidia-cuda-nvrtc>=13.0.48",
		"nvidia-cuda-runtime>=13.0.48", "nvidia-cudnn-cu13>=9.12.0.46,<10.0", "nvidia-cufft>=12.0.0.15", "nvidia-cusolver>=12.0.3.29",
		"nvidia-cusparse>=12.6.2.49", "nvidia-nccl-cu13>=2.27.7", "nvidia-nvjitlink>=13.0.39", "nvidia-nvshmem-cu13>=3.3.20", "nvidia-nvvm",
	}
}
