package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// adapterFile and adapterConfig are PEFT's names for the two files of an adapter.
const (
	adapterFile   = "adapter_model"
	adapterConfig = "adapter_config.json"
)

// ReadLoRA reads the adapter at path: a safetensors or PyTorch file, or a folder that PEFT wrote, with
// adapter_model.safetensors and adapter_config.json in it or in subfolders unet, text_encoder and text_encoder_2. See
// [LoRAFrom] for the names a file may use. A configuration beside a file called adapter_model belongs to it.
func ReadLoRA(path string) (*LoRA, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return readLoRAFile(path, nil)
	}
	if file := adapterIn(path); file != "" {
		return readLoRAFile(file, nil)
	}
	all := &LoRA{}
	for _, component := range loraComponents {
		file := adapterIn(filepath.Join(path, componentFolder(component)))
		if file == "" {
			continue
		}
		part, err := readLoRAFile(file, &component)
		if err != nil {
			return nil, err
		}
		all.Layers = append(all.Layers, part.Layers...)
		all.Dialect, all.DType = part.Dialect, wider(all.DType, part.DType)
	}
	if len(all.Layers) == 0 {
		return nil, fmt.Errorf("%s holds no %s.safetensors, and neither do folders unet, text_encoder and text_encoder_2 in it; give an adapter's file or PEFT's folder", path, adapterFile)
	}
	return all, nil
}

// componentFolder is the name of a component's folder in a pipeline.
func componentFolder(component string) string {
	if component == LoRAUNet {
		return "unet"
	}
	return component
}

// adapterIn returns the path of the adapter that PEFT wrote into a folder; "" if there is none.
func adapterIn(dir string) string {
	for _, extension := range []string{".safetensors", ".bin"} {
		path := filepath.Join(dir, adapterFile+extension)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// readLoRAFile reads one file. PEFT's files do not say whose layers they hold; where the folder does, component is given.
func readLoRAFile(path string, component *string) (*LoRA, error) {
	source, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	config, err := configBeside(path)
	if err != nil {
		return nil, err
	}
	lora, err := loraFrom(source, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if component != nil {
		for i := range lora.Layers {
			lora.Layers[i].Component = *component
		}
	}
	return lora, nil
}

// configBeside reads the configuration beside a file called adapter_model; nil if there is none.
func configBeside(path string) (*peftConfig, error) {
	if base := filepath.Base(path); strings.TrimSuffix(base, filepath.Ext(base)) != adapterFile {
		return nil, nil
	}
	beside := filepath.Join(filepath.Dir(path), adapterConfig)
	if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	data, err := readSmall(beside, maxIndex)
	if err != nil {
		return nil, err
	}
	return parsePEFTConfig(beside, data)
}

// LoRAFrom reads the adapter that a source holds, its layers sorted by component and module. These names are understood:
//
//   - attention processors of older diffusers: ATTENTION.processor.to_q_lora.down.weight and .up.weight, in text encoders
//     ATTENTION.to_q_lora.down.weight;
//   - PEFT and today's diffusers: MODULE.lora_A.weight (down) and MODULE.lora_B.weight (up);
//   - in between: MODULE.lora.down.weight, MODULE.lora_linear_layer.down.weight, and .up.weight;
//   - kohya: lora_unet_MODULE, lora_te_MODULE, lora_te1_MODULE or lora_te2_MODULE with .lora_down.weight, .lora_up.weight,
//     and .lora_mid.weight between 1×1 factors, which is multiplied into the down factor;
//   - a scalar MODULE.alpha, or PEFT's configuration in the file's metadata, for the scale.
//
// All but kohya's may have "unet.", "text_encoder." or "text_encoder_2." in front, and "base_model.model." before that. In
// kohya's the dots of modules are underscores: such layers keep that spelling until [LoRA.Resolve] compares it with the
// modules of a model.
//
// It returns one error that lists every name that is none of these and every factor whose other half is missing: an
// adapter is read whole or not at all. Adapters of other kinds, such as DoRA, LoHa and LoKr, are refused.
func LoRAFrom(source Source) (*LoRA, error) { return loraFrom(source, nil) }

func loraFrom(source Source, config *peftConfig) (*LoRA, error) {
	if err := checkKind(source.Names()); err != nil {
		return nil, err
	}
	lora := &LoRA{}
	halves, err := gatherHalves(source, lora)
	if err != nil {
		return nil, err
	}
	configs, err := metadataConfigs(source.Metadata())
	if err != nil {
		return nil, err
	}
	for _, h := range halves {
		own := config
		if own == nil {
			own = configs[h.component]
		}
		layer, err := h.layer(own)
		if err != nil {
			return nil, err
		}
		layer.mangled = lora.Dialect == KohyaLoRA
		lora.Layers = append(lora.Layers, layer)
	}
	lora.sort()
	return lora, nil
}

// loraHalves collects what a file says of one module.
type loraHalves struct {
	component, module string
	part              [alphaPart + 1]*Tensor
}

// gatherHalves brings the factors of each module together, and finds the file's dialect and data type.
func gatherHalves(source Source, lora *LoRA) ([]*loraHalves, error) {
	byModule := map[[2]string]*loraHalves{}
	var halves []*loraHalves
	var unknown []string
	first := map[LoRADialect]string{}
	for _, name := range source.Names() {
		n := parseLoRAName(name)
		if n.part == noPart {
			unknown = append(unknown, name)
			continue
		}
		if first[n.dialect] == "" {
			first[n.dialect] = name
		}
		key := [2]string{n.component, n.module}
		h := byModule[key]
		if h == nil {
			h = &loraHalves{component: n.component, module: n.module}
			byModule[key] = h
			halves = append(halves, h)
		}
		t, err := source.Tensor(name)
		if err != nil {
			return nil, err
		}
		if h.part[n.part] != nil {
			return nil, fmt.Errorf("%s and %s are the same factor under two names; keep one of them", h.part[n.part].Name, name)
		}
		h.part[n.part] = t
		lora.Dialect = n.dialect
		if n.part != alphaPart {
			lora.DType = wider(lora.DType, t.DType)
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%d names are not LoRA factors in the naming of diffusers, PEFT or kohya: %s; remove or convert them", len(unknown), listed(unknown))
	}
	if len(halves) == 0 {
		return nil, errors.New("there are no LoRA factors; check that this is an adapter and not a model")
	}
	if kohya := first[KohyaLoRA]; kohya != "" && len(first) > 1 {
		return nil, fmt.Errorf("the file mixes kohya's names (%s) with others (%s); split it into one file for each", kohya, first[DiffusersLoRA]+first[PEFTLoRA])
	}
	if first[DiffusersLoRA] != "" && first[PEFTLoRA] != "" {
		lora.Dialect = DiffusersLoRA
	}
	var missing []string
	for _, h := range halves {
		for part, name := range map[loraPart]string{downPart: "down", upPart: "up"} {
			if h.part[part] == nil {
				missing = append(missing, h.module+" ("+name+")")
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("%d LoRA factors have no counterpart; missing are %s; export the adapter again", len(missing), listed(missing))
	}
	return halves, nil
}

// wider returns the floating-point type that holds the values of both: F32 for F16 with BF16. Zero stands for no type.
func wider(a, b DType) DType {
	switch {
	case a == 0 || a == b:
		return b
	case b == 0:
		return a
	case a == F64 || b == F64:
		return F64
	}
	return F32
}

// listed joins names for an error message; of more than a screenful, the first.
func listed(names []string) string {
	const most = 100
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// layer turns the tensors of a module into its adapter.
func (h *loraHalves) layer(config *peftConfig) (LoRALayer, error) {
	down, mid, up := h.part[downPart], h.part[midPart], h.part[upPart]
	layer := LoRALayer{Component: h.component, Module: h.module, origin: down.Name}
	bad := func() error {
		return fmt.Errorf("LoRA module %q: %s is %v and %s is %v instead of [rank, in] and [out, rank], or [rank, in, height, width] with sides of at most %d and [out, rank, 1, 1]; export the adapter again",
			h.module, down.Name, down.Shape, up.Name, up.Shape, maxLoRAKernel)
	}
	d, u := down.Shape, up.Shape
	if len(d) != len(u) || (len(d) != 2 && len(d) != 4) || d[0] != u[1] && mid == nil {
		return layer, bad()
	}
	layer.Rank, layer.In, layer.Out = d[0], d[1], u[0]
	if len(d) == 4 {
		layer.Kernel = [2]int{d[2], d[3]}
		if u[2] != 1 || u[3] != 1 || min(d[2], d[3]) < 1 || max(d[2], d[3]) > maxLoRAKernel {
			return layer, bad()
		}
	}
	var err error
	if layer.Up, err = up.Float32(); err != nil {
		return layer, err
	}
	if layer.Down, err = down.Float32(); err != nil {
		return layer, err
	}
	if mid != nil {
		if err := layer.foldMid(mid, u[1]); err != nil {
			return layer, err
		}
	}
	if layer.Alpha, err = config.alpha(h.module, layer.Rank); err != nil {
		return layer, err
	}
	if alpha := h.part[alphaPart]; alpha != nil {
		values, err := alpha.Float64()
		if err != nil {
			return layer, err
		}
		if len(values) != 1 {
			return layer, fmt.Errorf("%s has %d values instead of one; export the adapter again", alpha.Name, len(values))
		}
		layer.Alpha = values[0]
	}
	return layer, layer.check()
}

// foldMid multiplies the core of a Tucker decomposition, mid [rank, rank, height, width], into the down factor
// [rank, in, 1, 1]: what results is a convolution from In to Rank channels with the core's kernel, so an ordinary factor.
func (l *LoRALayer) foldMid(mid *Tensor, rank int) error {
	m := mid.Shape
	if len(m) != 4 || m[0] != l.Rank || m[1] != l.Rank || rank != l.Rank || l.Kernel != [2]int{1, 1} ||
		min(m[2], m[3]) < 1 || max(m[2], m[3]) > maxLoRAKernel {
		return fmt.Errorf("LoRA module %q: %s is %v instead of [%d, %d, height, width] with sides of at most %d between [rank, in, 1, 1] and [out, rank, 1, 1]; export the adapter again",
			l.Module, mid.Name, m, l.Rank, l.Rank, maxLoRAKernel)
	}
	core, err := mid.Float32()
	if err != nil {
		return err
	}
	down, kernel := l.Down, m[2]*m[3]
	l.Kernel = [2]int{m[2], m[3]}
	l.Down = make([]float32, 0, l.Rank*l.In*kernel)
	for p := range l.Rank {
		sum := make([]float64, l.In*kernel)
		for q := range l.Rank {
			taps := core[(p*l.Rank+q)*kernel:][:kernel]
			for i, v := range down[q*l.In:][:l.In] {
				for k, tap := range taps {
					sum[i*kernel+k] += float64(tap) * float64(v)
				}
			}
		}
		for _, v := range sum {
			l.Down = append(l.Down, float32(v))
		}
	}
	return nil
}
