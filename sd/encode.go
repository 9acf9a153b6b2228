package sd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
)

// Embedding is what a prompt is to the UNet.
type Embedding struct {
	Context []float32 // [tokens, width]
	Pooled  []float32 // SDXL only
	Tokens  int
	Width   int
	Cut     string // the end of the prompt that did not fit; "" if all of it did
}

// EncodePrompt turns a prompt into its embedding. Prompts are encoded one at a time, so that an embedding depends on
// nothing but its own text.
func (m *Model) EncodePrompt(ctx context.Context, prompt string) (*Embedding, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	out := &Embedding{}
	var parts [][]float32
	for i, t := range m.Towers {
		ids, cut := t.Tokenizer.Encode(prompt)
		if cut != "" {
			out.Cut = cut
		}
		hidden, pooled, err := m.encodeIDs(i, ids)
		if err != nil {
			return nil, err
		}
		out.Tokens = len(ids)
		out.Width += t.Encoder.Config.Width
		parts = append(parts, hidden)
		out.Pooled = pooled // the last tower's
	}
	out.Context = parts[0]
	if len(parts) > 1 {
		out.Context = interleave(parts, out.Tokens)
	}
	return out, nil
}

// interleave joins the embeddings of several towers token by token.
func interleave(parts [][]float32, tokens int) []float32 {
	var out []float32
	for i := range tokens {
		for _, p := range parts {
			w := len(p) / tokens
			out = append(out, p[i*w:(i+1)*w]...)
		}
	}
	return out
}

// encodeIDs runs one text encoder on one prompt.
func (m *Model) encodeIDs(tower int, ids []int32) (hidden, pooled []float32, err error) {
	t := m.Towers[tower]
	n := len(t.Params.Tensors)
	f, err := m.function(t.Name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		e := t.Encoder.Forward(t.Params.Weights(in[:n]), in[n], in[n+1])
		state := e.Last
		if m.XL {
			state = e.Penultimate
		}
		if e.Pooled != nil {
			return []*ad.Value{state, e.Pooled}
		}
		return []*ad.Value{state}
	})
	if err != nil {
		return nil, nil, err
	}
	end := int32(max(0, slices.Index(ids, t.Tokenizer.EndID())))
	out, err := f.Call(append(slices.Clone(t.Params.Tensors), engine.Int32s(ids, 1, len(ids)), engine.Int32s([]int32{end}, 1))...)
	if err != nil {
		return nil, nil, err
	}
	defer engine.Free(out...)
	if hidden, err = engine.Values(out[0]); err != nil {
		return nil, nil, err
	}
	if len(out) > 1 {
		pooled, err = engine.Values(out[1])
	}
	return hidden, pooled, err
}

// NegativeEmbedding is the embedding that guidance steers away from: that of the negative prompt, or zeros where the
// pipeline says so for an empty one.
func (m *Model) NegativeEmbedding(ctx context.Context, prompt string) (*Embedding, error) {
	e, err := m.EncodePrompt(ctx, prompt)
	if err != nil {
		return nil, err
	}
	if m.XL && m.ForceZeros && prompt == "" {
		clear(e.Context)
		clear(e.Pooled)
	}
	return e, nil
}

// Moments are the mean and the logarithm of the variance of a picture's latents, each [channels, h, w], unscaled.
type Moments struct {
	Mean, LogVariance []float32
}

// EncodePicture maps a picture [3, height, width] in [−1, 1] to the moments of its latents.
func (m *Model) EncodePicture(ctx context.Context, pixels []float32, height, width int) (Moments, error) {
	if _, _, err := m.LatentSize(height, width); err != nil {
		return Moments{}, err
	}
	return m.encode(ctx, pixels, height, width)
}

// encode takes every size that fits the autoencoder, also where it does not fit the UNet.
func (m *Model) encode(ctx context.Context, pixels []float32, height, width int) (Moments, error) {
	if ctx.Err() != nil {
		return Moments{}, context.Cause(ctx)
	}
	n := len(m.VAEParams.Tensors)
	f, err := m.function("vae encoder", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		mean, logVariance := m.VAE.Encode(m.VAEParams.Weights(in[:n]), in[n])
		return []*ad.Value{mean, logVariance}
	})
	if err != nil {
		return Moments{}, err
	}
	out, err := f.Call(append(slices.Clone(m.VAEParams.Tensors), engine.Float32s(pixels, 1, m.VAE.Config.InChannels, height, width))...)
	if err != nil {
		return Moments{}, err
	}
	defer engine.Free(out...)
	mean, err := engine.Values(out[0])
	if err != nil {
		return Moments{}, err
	}
	logVariance, err := engine.Values(out[1])
	return Moments{Mean: mean, LogVariance: logVariance}, err
}

// Sample draws latents from the moments with the given standard normal numbers, and scales them for the UNet.
func (m *Model) Sample(moments Moments, normals []float32) []float32 {
	out := make([]float32, len(moments.Mean))
	for i, mean := range moments.Mean {
		// The bounds are those of diffusers' DiagonalGaussianDistribution.
		logVariance := min(max(float64(moments.LogVariance[i]), -30), 20)
		out[i] = float32((float64(mean) + math.Exp(0.5*logVariance)*float64(normals[i])) * m.VAE.Config.ScalingFactor)
	}
	return out
}

// Decode maps scaled latents [channels, h, w] to a picture [3, 8h, 8w], about in [−1, 1].
func (m *Model) Decode(ctx context.Context, latents []float32, h, w int) ([]float32, error) {
	return m.DecodeBatch(ctx, latents, 1, h, w)
}

// DecodeBatch maps scaled latents [batch, channels, h, w] to pictures [batch, 3, 8h, 8w] at once.
func (m *Model) DecodeBatch(ctx context.Context, latents []float32, batch, h, w int) ([]float32, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	n := len(m.VAEParams.Tensors)
	compute := cmp.Or(m.Compute, nn.Float32)
	f, err := m.function("vae decoder in "+string(compute), func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		z := ad.Scale(in[n], 1/m.VAE.Config.ScalingFactor)
		return []*ad.Value{m.VAE.Decode(m.VAEParams.Weights(in[:n]).ComputeIn(compute), z)}
	})
	if err != nil {
		return nil, err
	}
	out, err := f.Call(append(slices.Clone(m.VAEParams.Tensors), engine.Float32s(latents, batch, m.VAE.Config.LatentChannels, h, w))...)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out...)
	return engine.Values(out[0])
}

// ComponentHash identifies the files of a component (vae, text_encoder, …): caches of what it computes are keyed by it.
func (m *Model) ComponentHash(component string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h, ok := m.hashes[component]; ok {
		return h, nil
	}
	h, err := HashFolder(m.path(component))
	if err != nil {
		return "", err
	}
	m.hashes[component] = h
	return h, nil
}

// HashFolder is the SHA-256 of the names, sizes and contents of the regular files in a folder, in hexadecimal.
func HashFolder(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("model: %w", err)
	}
	hash := sha256.New()
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("model: %w", err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		fmt.Fprintf(hash, "%d:%s:%d:", len(entry.Name()), entry.Name(), info.Size())
		if err := hashFile(hash, path); err != nil {
			return "", fmt.Errorf("model: %w", err)
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func hashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
