package diffusion

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
)

// number is a JSON number or one of the words that Python's json module writes for what JSON cannot express.
type number float64

// UnmarshalJSON reads numbers, and the words in the quotes that quoteNonFinite put around them.
func (n *number) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case `"-Infinity"`:
		*n = number(math.Inf(-1))
	case `"Infinity"`:
		*n = number(math.Inf(1))
	case `"NaN"`:
		*n = number(math.NaN())
	default:
		return json.Unmarshal(data, (*float64)(n))
	}
	return nil
}

// nonFinite matches strings, which are left alone, and the words outside of strings.
var nonFinite = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|-?Infinity|NaN`)

// quoteNonFinite makes JSON of what Python writes for infinite numbers, as in "lambda_min_clipped": -Infinity.
func quoteNonFinite(data []byte) []byte {
	return nonFinite.ReplaceAllFunc(data, func(found []byte) []byte {
		if found[0] == '"' {
			return found
		}
		return []byte(`"` + string(found) + `"`)
	})
}

// irrelevant fields have no effect on the supported samplers: they say who wrote the file, or refine features whose
// own field must be off.
var irrelevant = []string{
	"_diffusers_version", "_use_default_values", "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range",
	"flow_shift", "time_shift_type",
}

// featuresOff are fields that may be there, but only with the feature switched off.
var featuresOff = []string{
	"thresholding", "clip_sample", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas",
	"use_dynamic_shifting", "trained_betas", "sigma_min", "sigma_max",
}

// LoadConfig reads a scheduler_config.json. What cannot be honoured is refused by name; fields this package does not
// know are listed in Config.Ignored.
func LoadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (Config, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(quoteNonFinite(data), &fields); err != nil {
		return Config{}, fmt.Errorf("the file is no JSON object of a scheduler (%w); copy it from the model again", err)
	}
	c := defaults()
	var order, trainSteps, offset *number
	lambda := (*number)(&c.LambdaMinClipped)
	var algorithm, interpolation, timestepType, variance *string
	known := map[string]any{
		"_class_name": &c.Class, "num_train_timesteps": &trainSteps, "beta_schedule": &c.BetaSchedule,
		"beta_start": &c.BetaStart, "beta_end": &c.BetaEnd, "rescale_betas_zero_snr": &c.RescaleBetasZeroSNR,
		"prediction_type": (*string)(&c.PredictionType), "timestep_spacing": &c.TimestepSpacing, "steps_offset": &offset,
		"set_alpha_to_one": &c.SetAlphaToOne, "skip_prk_steps": &c.SkipPRKSteps, "use_karras_sigmas": &c.UseKarrasSigmas,
		"final_sigmas_type": &c.FinalSigmasType, "solver_order": &order, "solver_type": &c.SolverType,
		"lower_order_final": &c.LowerOrderFinal, "euler_at_final": &c.EulerAtFinal, "lambda_min_clipped": lambda,
		"algorithm_type": &algorithm, "interpolation_type": &interpolation, "timestep_type": &timestepType,
		"variance_type": &variance,
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := string(fields[name])
		target, isKnown := known[name]
		switch {
		case isKnown:
			if err := json.Unmarshal(fields[name], target); err != nil {
				return Config{}, fmt.Errorf("%s has the value %s, which is of the wrong type", name, shorten(value))
			}
		case slices.Contains(featuresOff, name):
			if value != "null" && value != "false" {
				return Config{}, unsupported(name, shorten(value), offValue(name))
			}
		case !slices.Contains(irrelevant, name):
			c.Ignored = append(c.Ignored, name)
		}
	}
	for _, f := range []struct {
		name string
		from *number
		to   *int
	}{{"num_train_timesteps", trainSteps, &c.NumTrainTimesteps}, {"steps_offset", offset, &c.StepsOffset}, {"solver_order", order, &c.SolverOrder}} {
		if f.from == nil {
			continue
		}
		if float64(*f.from) != float64(int32(*f.from)) {
			return Config{}, fmt.Errorf("%s is %v; it must be a whole number", f.name, float64(*f.from))
		}
		*f.to = int(*f.from)
	}
	for _, f := range []struct {
		name      string
		value     *string
		supported []string
	}{
		{"algorithm_type", algorithm, []string{"dpmsolver++"}},
		{"interpolation_type", interpolation, []string{"linear"}},
		{"timestep_type", timestepType, []string{"discrete"}},
		{"variance_type", variance, []string{"null"}},
	} {
		if f.value != nil && !slices.Contains(f.supported, *f.value) {
			return Config{}, unsupported(f.name, fmt.Sprintf("%q", shorten(*f.value)), f.supported...)
		}
	}
	if c.Class == "" {
		return Config{}, errors.New("_class_name is missing; set it to one of " + strings.Join(classNames(), ", "))
	}
	if _, ok := fields["clip_sample"]; !ok && c.Class == ddimClass {
		return Config{}, errors.New("clip_sample is missing, which switches clipping on; that is not supported, set it to false")
	}
	return c, c.Validate()
}

// offValue is the value that switches a feature off.
func offValue(name string) string {
	switch name {
	case "trained_betas", "sigma_min", "sigma_max":
		return "null"
	}
	return "false"
}

// shorten cuts a value from a file to what fits into a message.
func shorten(s string) string {
	const most = 60
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
