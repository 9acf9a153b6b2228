// Package vision holds the networks that look at pictures to judge them, as opposed to making them: CLIP's vision tower,
// the Inception v3 of the Fréchet inception distance, and the backbones of LPIPS. They are evaluated, never trained.
package vision
