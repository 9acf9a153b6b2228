// Package data reads what a diffusion model learns from: folders of captioned pictures and lists of prompts.
//
// A [Folder] is read strictly: every picture has a caption of its own, every metadata row has its picture, and the
// order is that of the file names. [Preprocess] turns a picture into model input with a resampler that agrees with
// Pillow byte for byte; [Batches] says which pictures make up the batch of a step as a pure function of the seed and the
// step; [Cache] keeps what a frozen encoder made of them; [SavePNG] and [Grid] write pictures out.
package data
