package detectors

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/score/classifier"
)

const onnxUsage = "onnx:FILE,LABELS,pixels=0..1|-1..1|imagenet[,SETTING=VALUE]"

const onnxWhat = "any image classifier; settings: activation=softmax|sigmoid|none, fit=stretch|crop, filter=lanczos|bicubic|bilinear, short-side=N, size=N"

// openONNX opens a classifier: an ONNX file, its labels, and how pictures are prepared, which the file does not say. The
// range of the pixels has no default: a wrong one gives wrong scores and nothing else.
func openONNX(e *engine.Engine, arguments []string) (*Opened, error) {
	labels, err := classifier.ReadLabels(arguments[1])
	if err != nil {
		return nil, err
	}
	options, err := onnxOptions(arguments[2:])
	if err != nil {
		return nil, err
	}
	options.Labels = labels
	d, err := classifier.Open(e, arguments[0], options)
	if err != nil {
		return nil, err
	}
	return &Opened{Detector: d, Usual: score.Criterion{}, Labels: d.Labels(), EachLabel: true, close: d.Free}, nil
}

func onnxOptions(settings []string) (classifier.Options, error) {
	var o classifier.Options
	given := map[string]bool{}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if given[name] {
			return o, fmt.Errorf("the setting %q is given twice", name)
		}
		given[name] = true
		known := true
		switch name {
		case "pixels":
			switch value {
			case "0..1":
				o.Std = [3]float32{1, 1, 1}
			case "-1..1":
				o.Mean, o.Std = [3]float32{0.5, 0.5, 0.5}, [3]float32{0.5, 0.5, 0.5}
			case "imagenet":
				o.Mean, o.Std = classifier.ImageNetMean, classifier.ImageNetStd
			default:
				known = false
			}
		case "activation":
			o.Activation = classifier.Activation(value)
			known = o.Activation == classifier.Softmax || o.Activation == classifier.Sigmoid || o.Activation == classifier.None
		case "fit":
			o.Fit = classifier.Fit(value)
			known = o.Fit == classifier.Stretch || o.Fit == classifier.Crop
		case "filter":
			known = false
			for _, f := range []data.Filter{data.Lanczos, data.Bicubic, data.Bilinear} {
				if f.String() == value {
					o.Filter, known = f, true
				}
			}
		case "short-side", "size":
			n, err := strconv.Atoi(value)
			known = err == nil && n > 0 && n <= 4096
			if name == "size" {
				o.Width, o.Height = n, n
			} else {
				o.ShortSide = n
			}
		default:
			known = false
		}
		if !known {
			return o, fmt.Errorf("the setting %q is not known; write %s, with %s", setting, onnxUsage, strings.TrimPrefix(onnxWhat, "any image classifier; "))
		}
	}
	if !given["pixels"] {
		return o, fmt.Errorf("the file does not say which pixels the network takes; write %s", onnxUsage)
	}
	return o, nil
}
