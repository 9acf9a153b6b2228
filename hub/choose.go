package hub

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Variants of weights that can be asked for.
const (
	FullPrecision = ""
	HalfPrecision = "fp16"
)

// Pipelines that package sd reads.
const (
	sdPipeline   = "StableDiffusionPipeline"
	sdxlPipeline = "StableDiffusionXLPipeline"
)

const indexFile = "model_index.json"

// choose picks from the files of a model, by path, those that package sd reads: configurations, vocabularies, and one set
// of weights for each component.
func choose(have map[string]bool, class, variant string) ([]string, error) {
	components := []struct{ folder, weights string }{
		{"unet", "diffusion_pytorch_model"}, {"vae", "diffusion_pytorch_model"}, {"text_encoder", "model"},
	}
	suffixes := []string{""}
	if class == sdxlPipeline {
		components = append(components, struct{ folder, weights string }{"text_encoder_2", "model"})
		suffixes = append(suffixes, "_2")
	}
	out := []string{indexFile}
	need := func(files ...string) error {
		for _, file := range files {
			if !have[file] {
				return fmt.Errorf("there is no %s", file)
			}
			out = append(out, file)
		}
		return nil
	}
	found := false // weights of the variant
	for _, c := range components {
		if err := need(c.folder + "/config.json"); err != nil {
			return nil, err
		}
		files, isVariant, err := chooseWeights(have, c.folder, c.weights, variant)
		if err != nil {
			return nil, err
		}
		out, found = append(out, files...), found || isVariant
	}
	if variant != FullPrecision && !found {
		return nil, fmt.Errorf("there are no weights of variant %s; leave --variant out", variant)
	}
	if err := need("scheduler/scheduler_config.json"); err != nil {
		return nil, err
	}
	for _, suffix := range suffixes {
		folder := "tokenizer" + suffix + "/"
		vocabulary := []string{folder + "vocab.json", folder + "merges.txt"}
		if !have[vocabulary[0]] && have[folder+"tokenizer.json"] {
			vocabulary = []string{folder + "tokenizer.json"}
		}
		if err := need(vocabulary...); err != nil {
			return nil, err
		}
		for _, name := range []string{"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"} {
			if have[folder+name] {
				out = append(out, folder+name)
			}
		}
	}
	// Not read, but small, and diffusers wants it when it loads a copy of the model.
	if have["feature_extractor/preprocessor_config.json"] {
		out = append(out, "feature_extractor/preprocessor_config.json")
	}
	return out, nil
}

// chooseWeights picks one set of weights. Pickles come last, and of each kind the wanted variant first.
func chooseWeights(have map[string]bool, folder, base, variant string) (files []string, isVariant bool, err error) {
	torch := base
	if base == "model" {
		torch = "pytorch_model"
	}
	variants := []string{FullPrecision, HalfPrecision}
	if variant == HalfPrecision {
		slices.Reverse(variants)
	}
	for _, kind := range []struct{ base, extension string }{{base, ".safetensors"}, {torch, ".bin"}} {
		for _, v := range variants {
			files, err := weightFiles(have, folder, kind.base, kind.extension, v)
			if err != nil || files != nil {
				return files, v == variant, err
			}
		}
	}
	return nil, false, fmt.Errorf("there are no weights in %s", folder)
}

// weightFiles is one file, or an index with its shards; none if there is neither.
func weightFiles(have map[string]bool, folder, base, extension, variant string) ([]string, error) {
	dotted := ""
	if variant != "" {
		dotted = "." + variant
	}
	if single := path.Join(folder, base+dotted+extension); have[single] {
		return []string{single}, nil
	}
	index := path.Join(folder, base+extension+".index"+dotted+".json")
	if !have[index] {
		return nil, nil
	}
	// Both BASE.fp16-00001-of-00002 and BASE-00001-of-00002.fp16 are in use.
	v := regexp.QuoteMeta(dotted)
	shard := regexp.MustCompile(`^` + regexp.QuoteMeta(path.Join(folder, base)) + `(?:` + v + `-(\d{5})-of-(\d{5})|-(\d{5})-of-(\d{5})` + v + `)` + regexp.QuoteMeta(extension) + `$`)
	var shards []string
	total := 0
	for file := range have {
		if m := shard.FindStringSubmatch(file); m != nil {
			shards = append(shards, file)
			total, _ = strconv.Atoi(first(m[2], m[4])) // five digits
		}
	}
	if len(shards) == 0 || len(shards) != total {
		return nil, fmt.Errorf("of the parts that %s names, %d of %d are there", index, len(shards), total)
	}
	slices.Sort(shards)
	return append([]string{index}, shards...), nil
}

// isPickle tells whether a file holds weights as a pickle.
func isPickle(file string) bool { return strings.HasSuffix(file, ".bin") }
