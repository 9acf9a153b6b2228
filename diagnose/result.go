package diagnose

import "math"

// Diagnosis is what was found.
type Diagnosis struct {
	Settings Settings    `json:"settings"`
	Models   []Diagnosed `json:"models"` // the base first
	// Differences compares the traces of every two models on the same draws, which leaves out what the draws have in common.
	Differences []Difference `json:"trace_differences"`
}

// Settings say what was measured and how; Diagnosis means nothing without them.
type Settings struct {
	Parameters      string  `json:"parameters"`
	Size            int     `json:"size"` // numbers in θ
	Rank            int     `json:"rank,omitempty"`
	Method          string  `json:"method"` // of fine-tuning
	Steps           int     `json:"steps"`
	Optimizer       string  `json:"optimizer"`
	LearningRate    float64 `json:"learning_rate"`
	BatchSize       int     `json:"batch_size"`
	Accumulation    int     `json:"accumulation"`
	Probes          int     `json:"probes"`
	Draws           int     `json:"draws"`
	PowerIterations int     `json:"power_iterations"`
	Tolerance       float64 `json:"tolerance"`
	Gamma           float64 `json:"gamma"`
	Iterations      int     `json:"iterations"`
	Damping         float64 `json:"damping"`
	LossBatches     int     `json:"loss_batches"`
	Seed            uint64  `json:"seed"`
	Engine          string  `json:"engine"`
}

// Diagnosed is what was found of one model.
type Diagnosed struct {
	Model
	Harm       Curvature `json:"harm"`        // of L_harm at θ
	FineTuning Curvature `json:"fine_tuning"` // of L_FT at θ
	// Systems are (I + γH) x = ∇L_harm with H = ∇²L_FT, both at θ_FT, one for each draw.
	Systems  []System  `json:"systems"`
	Line     Line      `json:"line"`
	Distance *Distance `json:"distance,omitempty"` // from the base, which has none
	// OtherFiles are the folders of parts other than the UNet whose files are not the base's: losses differ by those as well.
	OtherFiles []string `json:"other_files,omitempty"`
}

// Curvature describes the Hessian of a loss.
type Curvature struct {
	Trace   Estimate   `json:"trace"`
	Probes  []float64  `json:"probes"`  // ⟨z, Hz⟩ of each draw
	Spectra []Spectrum `json:"spectra"` // of each draw
}

// System is the hypergradient's linear system at one draw of pictures.
type System struct {
	Spectrum
	Contraction
	Gradient float64 `json:"gradient"` // ‖g‖
	// Residuals are ‖g − (I+γH)x_k‖/‖g‖ for k = 0 … K, measured; fewer than K+1 where numbers grew beyond what float32 holds.
	Residuals []float64 `json:"residuals"`
	Note      string    `json:"note,omitempty"`
}

// Residual is that of the last iterate, and whether there is one.
func (s System) Residual() (float64, bool) {
	if len(s.Residuals) == 0 {
		return 0, false
	}
	return s.Residuals[len(s.Residuals)-1], s.Note == ""
}

// Line is the losses at θ + s(θ_FT − θ).
type Line struct {
	S          []float64  `json:"s"`
	Harm       []Estimate `json:"harm"`
	FineTuning []Estimate `json:"fine_tuning"`
	Retain     []Estimate `json:"retain,omitempty"`

	// The same less their values at s = 0, draw by draw: what the draws have in common is left out.
	HarmChange       []Estimate `json:"harm_change"`
	FineTuningChange []Estimate `json:"fine_tuning_change"`
	RetainChange     []Estimate `json:"retain_change,omitempty"`

	Length float64 `json:"length"` // ‖θ_FT − θ‖, over all weights of the UNet
	Norm   float64 `json:"norm"`   // ‖θ‖, over all weights of the UNet

	AlongHarm       Along `json:"along_harm"`
	AlongFineTuning Along `json:"along_fine_tuning"`
}

// Along is how a loss L changes along the line, over the same draws.
type Along struct {
	Change    Estimate `json:"change"`    // L(θ_FT) − L(θ)
	Slope     Estimate `json:"slope"`     // dL/ds at s = 0, from the points beside it
	Curvature Estimate `json:"curvature"` // d²L/ds² at s = 0, likewise
}

// Distance is how far the UNet's weights are from the base's, in the Euclidean norm.
type Distance struct {
	Total  Length   `json:"total"`
	Blocks []Length `json:"blocks"` // as the network runs
	Layers []Length `json:"layers"` // every weight and bias by itself
}

// Length is the distance of some of the weights.
type Length struct {
	Name       string  `json:"name"`
	Distance   float64 `json:"distance"`  // ‖W − W₀‖
	Base       float64 `json:"base_norm"` // ‖W₀‖
	Parameters int     `json:"parameters"`
}

// Relative is ‖W − W₀‖/‖W₀‖; ok is false where the base is zero.
func (l Length) Relative() (share float64, ok bool) {
	if l.Base == 0 {
		return 0, false
	}
	return l.Distance / l.Base, true
}

// Difference is the trace of model A less that of model B, draw by draw.
type Difference struct {
	A          string   `json:"a"`
	B          string   `json:"b"`
	Harm       Estimate `json:"harm"`
	FineTuning Estimate `json:"fine_tuning"`
}

// differences compares every two models, the later with the earlier.
func differences(models []Diagnosed) []Difference {
	out := []Difference{}
	for j, a := range models {
		for _, b := range models[:j] {
			out = append(out, Difference{
				A: a.Name, B: b.Name,
				Harm:       paired(a.Harm.Probes, b.Harm.Probes),
				FineTuning: paired(a.FineTuning.Probes, b.FineTuning.Probes),
			})
		}
	}
	return out
}

// Expected is the change of L_harm that the trace stands for: ½‖θ_FT − θ‖²·Tr(∇²L_harm)/n, to second order the mean over
// displacements of all directions alike that are as long as fine-tuning's. It is what Proposition 1 of the paper is about,
// and has a meaning only where θ are all n weights.
func (d Diagnosed) Expected(size int) float64 {
	return d.Line.Length * d.Line.Length / 2 * d.Harm.Trace.Value / math.Max(1, float64(size))
}
