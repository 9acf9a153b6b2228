package finetune

import (
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/train"
)

func TestDefaultsAreValidUnderEveryScheduleAndOptimizer(t *testing.T) {
	for _, method := range Methods() {
		for _, schedule := range []string{train.ConstantSchedule, train.LinearSchedule, train.CosineSchedule, train.PolynomialSchedule} {
			for _, optimizer := range train.Optimizers() {
				c := Defaults(method)
				c.Schedule, c.Optimizer = schedule, optimizer
				if method == TextualInversion {
					c.Placeholder, c.Initializer = "<ball>", "ball"
				}
				if err := c.Validate(); err != nil {
					t.Errorf("%s, %s, %s: %v", method, schedule, optimizer, err)
				}
			}
		}
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	changes := map[string]func(c *Config){
		"method":             func(c *Config) { c.Method = "textual_inversion" },
		"steps":              func(c *Config) { c.Steps = -1 },
		"batch_size":         func(c *Config) { c.BatchSize = 0 },
		"accumulation":       func(c *Config) { c.Accumulation = 0 },
		"optimizer":          func(c *Config) { c.Optimizer = "adagrad" },
		"schedule":           func(c *Config) { c.Schedule = "cosign" },
		"warmup_steps":       func(c *Config) { c.WarmupSteps = -1 },
		"clip_norm":          func(c *Config) { c.ClipNorm = math.NaN() },
		"rank":               func(c *Config) { c.Rank = 0 },
		"alpha":              func(c *Config) { c.Alpha = math.Inf(1) },
		"prior_weight":       func(c *Config) { c.PriorWeight = -1 },
		"ema_decay":          func(c *Config) { c.EMADecay = 1 },
		"caption_dropout":    func(c *Config) { c.CaptionDropout = math.NaN() },
		"snr_gamma":          func(c *Config) { c.SNRGamma = -1 },
		"noise_offset":       func(c *Config) { c.NoiseOffset = math.Inf(1) },
		"resolution":         func(c *Config) { c.Resolution = -8 },
		"vae_tile_size":      func(c *Config) { c.VAETileSize = -32 },
		"train_text_encoder": func(c *Config) { c.TrainTextEncoder = true },
		"placeholder":        func(c *Config) { c.Placeholder = "<ball>" },
		"initializer":        func(c *Config) { c.Initializer = "ball" },
		"vectors": func(c *Config) {
			c.Method, c.Placeholder, c.Initializer, c.Vectors = TextualInversion, "<ball>", "ball", 0
		},
		"instance_prompt": func(c *Config) { c.Method, c.InstancePrompt = DreamBooth, "  " },
	}
	for key, change := range changes {
		c := Defaults(LoRA)
		change(&c)
		problems := c.Problems()
		if len(problems) != 1 || problems[0].Key != key {
			t.Errorf("%s: problems %v", key, problems)
		}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", key, err)
		}
	}
	several := Config{Method: Full}
	if n := len(several.Problems()); n < 4 {
		t.Errorf("an empty configuration has %d problems: %v", n, several.Problems())
	}
}
