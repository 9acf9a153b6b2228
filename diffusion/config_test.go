package diffusion

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func write(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "scheduler_config.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoadConfig(t *testing.T) {
	got, err := LoadConfig(write(t, `{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
		"beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
		"skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := StableDiffusion(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	// What newer versions of diffusers write, infinity included.
	got, err = LoadConfig(write(t, `{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
		"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "lambda_min_clipped": -Infinity,
		"final_sigmas_type": "zero", "use_karras_sigmas": true, "variance_type": null, "use_flow_sigmas": false,
		"flow_shift": 1.0, "thresholding": false, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
		"rescale_betas_zero_snr": true, "solver_order": 1, "solver_type": "heun", "euler_at_final": true,
		"lower_order_final": false, "note": "says -Infinity, \"NaN\" ", "another": [1]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Class != dpmSolverClass || !math.IsInf(got.LambdaMinClipped, -1) || got.FinalSigmasType != "zero" || !got.UseKarrasSigmas ||
		got.PredictionType != VPrediction || got.TimestepSpacing != "trailing" || !got.RescaleBetasZeroSNR || got.SolverOrder != 1 ||
		got.SolverType != "heun" || !got.EulerAtFinal || got.LowerOrderFinal {
		t.Errorf("got %+v", got)
	}
	if want := []string{"another", "note"}; !slices.Equal(got.Ignored, want) {
		t.Errorf("ignored %q, want %q", got.Ignored, want)
	}
}

func TestLoadConfigRefusesByName(t *testing.T) {
	for fields, want := range map[string]string{
		`"_class_name": "LMSDiscreteScheduler"`:   "PNDMScheduler",
		`"_class_name": ""`:                       "_class_name is missing",
		`"_class_name": 5`:                        "_class_name has the value 5",
		`"beta_schedule": "sigmoid"`:              "scaled_linear",
		`"beta_start": 0`:                         "beta_start",
		`"beta_start": 0.5`:                       "beta_start",
		`"beta_end": 1`:                           "beta_end",
		`"beta_end": NaN`:                         "beta_end",
		`"beta_end": "0.012"`:                     "beta_end",
		`"num_train_timesteps": 1`:                "num_train_timesteps",
		`"num_train_timesteps": 1e9`:              "num_train_timesteps",
		`"num_train_timesteps": 1e300`:            "whole number",
		`"num_train_timesteps": 10.5`:             "whole number",
		`"steps_offset": -1`:                      "steps_offset",
		`"steps_offset": 1000`:                    "steps_offset",
		`"prediction_type": "flow_prediction"`:    "v_prediction",
		`"timestep_spacing": "even"`:              "linspace",
		`"final_sigmas_type": "max"`:              "sigma_min",
		`"solver_order": 3`:                       "solver_order",
		`"solver_type": "bh2"`:                    "midpoint",
		`"algorithm_type": "sde-dpmsolver++"`:     "dpmsolver++",
		`"interpolation_type": "log_linear"`:      "linear",
		`"timestep_type": "continuous"`:           "discrete",
		`"variance_type": "learned"`:              "variance_type",
		`"lambda_min_clipped": NaN`:               "lambda_min_clipped",
		`"lambda_min_clipped": Infinity`:          "lambda_min_clipped",
		`"thresholding": true`:                    "thresholding",
		`"clip_sample": true`:                     "clip_sample",
		`"trained_betas": [0.1]`:                  "trained_betas",
		`"sigma_max": 3`:                          "sigma_max",
		`"use_beta_sigmas": true`:                 "use_beta_sigmas",
		`"set_alpha_to_one": "no"`:                "set_alpha_to_one",
		`"_class_name": "DDIMScheduler", "x": 1`:  "clip_sample is missing",
		`"_class_name": "EulerDiscreteScheduler"`: "",
	} {
		if !strings.Contains(fields, "_class_name") {
			fields += `, "_class_name": "PNDMScheduler"`
		}
		file := write(t, "{"+fields+"}")
		_, err := LoadConfig(file)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", fields, err)
		case want == "":
		case err == nil:
			t.Errorf("%s: accepted", fields)
		case !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: the error %q does not name the file and %q in one line", fields, err, want)
		}
	}
	for _, text := range []string{"", "[]", "null", "{", `{"_class_name": "`, `{"a": -Infinity`} {
		if _, err := LoadConfig(write(t, text)); err == nil {
			t.Errorf("accepted %q", text)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.json")); err == nil {
		t.Error("accepted a file that is not there")
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "num_train_timesteps": 20}`), 3)
	f.Add([]byte(`{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "use_karras_sigmas": true}`), 7)
	f.Add([]byte(`{"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}`), 2)
	f.Fuzz(func(t *testing.T, data []byte, steps int) {
		cfg, err := parseConfig(data)
		if err != nil {
			return
		}
		for _, name := range SamplerNames() {
			s, err := NewSampler(cfg, name, steps%50, WithNoise(func(_, n int) []float32 { return make([]float32, n) }))
			if err != nil {
				continue
			}
			x := []float32{1}
			for i := range s.Timesteps() {
				x = s.Step(s.ScaleModelInput(x, i), i, x)
			}
		}
	})
}
