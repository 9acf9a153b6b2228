package clip

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/vision"
)

// NSFW is the label of the safety checker.
const NSFW = "nsfw"

// SafetyChecker is Stable Diffusion's: the cosines of a picture's embedding with 17 concepts, each with its threshold, which
// fall by 0.01 where the picture is near one of 3 concepts of special care (diffusers, StableDiffusionSafetyChecker).
type SafetyChecker struct {
	model             *Model
	special, concepts []concept
	fingerprint       string
}

type concept struct {
	embedding []float32
	threshold float32
}

// SafetyVerdict is what the safety checker makes of one picture.
type SafetyVerdict struct {
	Special  []float32 // cosine − threshold of the concepts of special care, to three decimals
	Concepts []float32 // cosine − threshold + adjustment of the concepts, to three decimals
	NSFW     bool      // any of Concepts is above 0: the picture would be blackened
}

// OpenSafetyChecker opens the folder safety_checker of a pipeline, or the pipeline that has one. Files before and since
// transformers 5 are read. Pictures are seen through the transform [Processor]; a preprocessor_config.json beside the
// checker, or in feature_extractor, that asks for another is an error.
func OpenSafetyChecker(e *engine.Engine, dir string) (*SafetyChecker, error) {
	pipeline := filepath.Dir(dir)
	if _, err := os.Stat(filepath.Join(dir, "model_index.json")); err == nil {
		pipeline, dir = dir, filepath.Join(dir, "safety_checker")
	}
	c, err := openCheckpoint(dir)
	if err != nil {
		return nil, err
	}
	defer c.source.Close()
	for _, path := range []string{filepath.Join(dir, "preprocessor_config.json"), filepath.Join(pipeline, "feature_extractor", "preprocessor_config.json")} {
		if _, err := os.Stat(path); err == nil {
			if err := checkPreprocessor(path, c.architecture.vision.Image); err != nil {
				return nil, err
			}
		}
	}
	s := &SafetyChecker{model: &Model{engine: e}}
	if s.model.vision, err = c.newTower(); err != nil {
		return nil, err
	}
	if err := s.readConcepts(c); err != nil {
		return nil, err
	}
	loaded, err := c.load(isConcept, s.model.vision.Specs())
	if err != nil {
		return nil, err
	}
	s.model.eyes = loaded[0].tensors
	s.model.name = fmt.Sprintf("CLIP %s (%s)", c.architecture.name(), loaded[0].fingerprint)
	if err := s.model.compile(); err != nil {
		s.model.Close()
		return nil, err
	}
	return s, nil
}

// The tensors of the concepts, and of their thresholds.
const (
	specialTensor = "special_care_embeds"
	conceptTensor = "concept_embeds"
	thresholds    = "_weights"
)

func isConcept(name string) bool {
	name = strings.TrimSuffix(name, thresholds)
	return name == specialTensor || name == conceptTensor
}

func (s *SafetyChecker) readConcepts(c *checkpoint) error {
	f, err := collect(c.path, c.source, isConcept)
	if err != nil {
		return err
	}
	width := c.architecture.vision.Projection
	rows := func(name string) int {
		if t := f.tensors[name]; t != nil && len(t.Shape) == 2 {
			return t.Shape[0]
		}
		return -1
	}
	special, concepts := rows(specialTensor), rows(conceptTensor)
	t, err := f.take("Stable Diffusion's safety checker", map[string][]int{
		specialTensor: {special, width}, specialTensor + thresholds: {special},
		conceptTensor: {concepts, width}, conceptTensor + thresholds: {concepts},
	}, nil)
	if err != nil {
		return err
	}
	list := func(name string) (out []concept) {
		for i, threshold := range t[name+thresholds] {
			out = append(out, concept{t[name][i*width : (i+1)*width], threshold})
		}
		return out
	}
	s.special, s.concepts, s.fingerprint = list(specialTensor), list(conceptTensor), f.fingerprint
	return nil
}

// checkPreprocessor refuses a preprocessor_config.json that asks for another transform than [Processor].
func checkPreprocessor(path string, side int) error {
	object, err := readJSON(path)
	if err != nil {
		return err
	}
	s := section{where: path, values: object}
	for _, key := range []string{"do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb"} {
		on := true
		if s.get(key, &on); !on {
			s.problem("%s = false is not supported", key)
		}
	}
	filter, factor := 3, 1.0/255 // bicubic in Pillow
	if s.get("resample", &filter); filter != 3 {
		s.problem("resample = %d is not supported (3, bicubic, is)", filter)
	}
	if s.get("rescale_factor", &factor); math.Abs(factor-1.0/255) > 1e-9 {
		s.problem("rescale_factor = %v is not supported (1/255 is)", factor)
	}
	for _, key := range []string{"size", "crop_size"} {
		if raw, ok := object[key]; ok && !sideIs(raw, side) {
			s.problem("%s = %.60s is not the %d of vision_config.image_size", key, raw, side)
		}
	}
	mean, std := vision.CLIPColours()
	for key, want := range map[string][3]float32{"image_mean": mean, "image_std": std} {
		have := want
		if s.get(key, &have); have != want {
			s.problem("%s = %v is not supported (%v is)", key, have, want)
		}
	}
	if len(s.problems) > 0 {
		return fmt.Errorf("%s: %s", path, strings.Join(s.problems, "; "))
	}
	return nil
}

// sideIs tells whether a size is a number, or an object of numbers, all equal to side.
func sideIs(raw json.RawMessage, side int) bool {
	var number int
	if json.Unmarshal(raw, &number) == nil {
		return number == side
	}
	var named map[string]int
	if json.Unmarshal(raw, &named) != nil {
		return false
	}
	for _, n := range named {
		if n != side {
			return false
		}
	}
	return len(named) > 0
}

// Detect implements [score.Detector]: the label "nsfw" scores 1 where the checker would blacken the picture, else 0.
func (s *SafetyChecker) Detect(ctx context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	verdicts, err := s.Verdicts(ctx, pictures)
	if err != nil {
		return nil, err
	}
	findings := make([]score.Finding, len(verdicts))
	for i, v := range verdicts {
		findings[i].Scores = map[string]float64{NSFW: 0}
		if v.NSFW {
			findings[i].Scores[NSFW] = 1
		}
	}
	return findings, nil
}

// Verdicts judges pictures in detail.
func (s *SafetyChecker) Verdicts(ctx context.Context, pictures []*data.RGB) ([]SafetyVerdict, error) {
	embeddings, err := s.model.Embed(ctx, pictures, Processor)
	if err != nil {
		return nil, err
	}
	verdicts := make([]SafetyVerdict, len(embeddings))
	for i, embedding := range embeddings {
		if verdicts[i], err = s.judge(embedding); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// judge follows diffusers step by step, in float32 as NumPy computes there: the scores are rounded to three decimals before
// they are compared with 0.
func (s *SafetyChecker) judge(embedding []float32) (SafetyVerdict, error) {
	var v SafetyVerdict
	adjustment := float32(0)
	for _, c := range s.special {
		x, err := c.score(embedding, adjustment)
		if err != nil {
			return v, err
		}
		v.Special = append(v.Special, x)
		if x > 0 {
			adjustment = 0.01
		}
	}
	for _, c := range s.concepts {
		x, err := c.score(embedding, adjustment)
		if err != nil {
			return v, err
		}
		v.Concepts = append(v.Concepts, x)
		v.NSFW = v.NSFW || x > 0
	}
	return v, nil
}

func (c concept) score(embedding []float32, adjustment float32) (float32, error) {
	cos, err := cosine(embedding, c.embedding, "the safety checker")
	x := float32(cos) - c.threshold + adjustment
	return float32(math.RoundToEven(float64(x*1000))) / 1000, err
}

// Name implements [score.Detector].
func (s *SafetyChecker) Name() string {
	return fmt.Sprintf("Stable Diffusion safety checker (%s) on %s, %s", s.fingerprint, s.model.Name(), Processor)
}

// Close frees the weights.
func (s *SafetyChecker) Close() { s.model.Close() }
