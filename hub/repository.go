package hub

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// PlanRepository asks the hub what a model or a data set consists of, and chooses the files that this program reads:
//
//   - those whose path or name a pattern of include matches (see [path.Match]), where there are patterns;
//   - of a data set, the lists that prompts can be read from: .csv, .jsonl, .json and .txt;
//   - of a diffusers model, what [Client.Plan] takes;
//   - of a transformers model, such as CLIP, its configuration, one set of weights and its vocabulary;
//   - of any other model, ONNX files and what lies beside them to describe them.
//
// The variant is for models. Only model_index.json is downloaded.
func (c *Client) PlanRepository(ctx context.Context, id ID, variant string, include []string, h Hooks) (*Plan, error) {
	if c.Offline {
		return nil, fmt.Errorf("%s cannot be downloaded: HF_HUB_OFFLINE is set; unset it", id)
	}
	p, tree, err := c.begin(ctx, id)
	if err != nil {
		return nil, err
	}
	var chosen []string
	switch {
	case len(include) > 0:
		chosen, err = matching(tree, include)
	case id.Dataset:
		chosen, err = chooseLists(tree)
	case tree[indexFile].Path != "":
		return p, c.pipeline(ctx, p, tree, variant, h)
	default:
		chosen, err = chooseModel(names(tree), variant)
	}
	return p, c.take(p, tree, chosen, err)
}

// matching are the files that a pattern matches.
func matching(tree map[string]File, include []string) (out []string, err error) {
	for _, pattern := range include {
		found := false
		for name := range tree {
			whole, err := path.Match(pattern, name)
			last, _ := path.Match(pattern, path.Base(name)) // the same error
			if err != nil && name != pattern {
				return nil, fmt.Errorf("the pattern %q is malformed; use one such as *.csv", pattern)
			}
			if !whole && !last && name != pattern {
				continue
			}
			if found = true; !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		if !found {
			return nil, fmt.Errorf("no file matches %q", pattern)
		}
	}
	slices.Sort(out)
	if i := slices.IndexFunc(out, isParquet); i >= 0 {
		return nil, parquetError(out[i])
	}
	return out, nil
}

// maxLists bounds what is fetched of a data set that nobody looked into: lists of prompts have some megabytes.
const maxLists = 1 << 30

// chooseLists picks the files that prompts can be read from.
func chooseLists(tree map[string]File) (out []string, err error) {
	var bytes int64
	parquet := ""
	for name, f := range tree {
		switch ending := strings.ToLower(path.Ext(name)); {
		case strings.HasPrefix(path.Base(name), ".") || path.Base(name) == "dataset_infos.json":
		case slices.Contains([]string{".csv", ".jsonl", ".json", ".txt"}, ending):
			out = append(out, name)
			bytes += f.Size
		case isParquet(name) && (parquet == "" || name < parquet):
			parquet = name
		}
	}
	switch {
	case len(out) == 0 && parquet != "":
		return nil, parquetError(parquet)
	case len(out) == 0:
		return nil, fmt.Errorf("it has no list of prompts: no file ends in .csv, .jsonl, .json or .txt")
	case bytes > maxLists:
		return nil, fmt.Errorf("its %d lists have %d bytes; say by --include which of them, such as --include %s", len(out), bytes, slices.Min(out))
	}
	slices.Sort(out)
	return out, nil
}

func isParquet(name string) bool { return strings.EqualFold(path.Ext(name), ".parquet") }

func parquetError(name string) error {
	return fmt.Errorf(`%s is a Parquet file, which is not read; make a .csv of it, as by python -c "import pandas; pandas.read_parquet('%s').to_csv('prompts.csv')", and name that`, name, path.Base(name))
}

// chooseModel picks the files of a model that is not one of diffusers.
func chooseModel(have map[string]bool, variant string) ([]string, error) {
	beside := func(out []string, files ...string) []string {
		for _, name := range files {
			if have[name] {
				out = append(out, name)
			}
		}
		return out
	}
	if have["config.json"] {
		weights, isVariant, err := chooseWeights(have, "", "model", variant)
		if err == nil {
			if variant != FullPrecision && !isVariant {
				return nil, fmt.Errorf("there are no weights of variant %s; leave --variant out", variant)
			}
			return beside(append([]string{"config.json"}, weights...), "preprocessor_config.json", "vocab.json", "merges.txt",
				"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), nil
		}
	}
	var onnx []string
	for name := range have {
		if strings.EqualFold(path.Ext(name), ".onnx") {
			onnx = append(onnx, name)
		}
	}
	if whole := slices.DeleteFunc(slices.Clone(onnx), isReduced); len(whole) > 0 {
		onnx = whole
	}
	if len(onnx) == 0 {
		return nil, fmt.Errorf("it has neither %s, nor config.json with model.safetensors or pytorch_model.bin, nor an ONNX file; say by --include which files you want, such as --include '*.pth'", indexFile)
	}
	slices.Sort(onnx)
	out := onnx
	for _, name := range onnx {
		out = beside(out, name+"_data", name+".data") // large tensors
	}
	return beside(out, "config.json", "preprocessor_config.json", "labels.txt", "labels.json"), nil
}

// isReduced tells by its name whether an ONNX file computes in fewer bits than the one beside it.
func isReduced(name string) bool {
	base := strings.TrimSuffix(strings.ToLower(path.Base(name)), ".onnx")
	for _, ending := range []string{"fp16", "int8", "uint8", "q4", "q4f16", "q8", "bnb4", "quantized", "quant"} {
		if strings.HasSuffix(base, "_"+ending) || strings.HasSuffix(base, "-"+ending) {
			return true
		}
	}
	return false
}
