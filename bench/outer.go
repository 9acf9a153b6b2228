package bench

import (
	"context"
	"time"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/train"
)

// The public recipe for Stable Diffusion 1.4 (cmd/resalign/presets/sd14.toml): three simulations in each outer step, of
// 15 inner steps on average over its 15 configurations, five Richardson iterations and one product for the residual, one
// harmful picture, four retained ones and one to fine-tune on.
const (
	recipeSimulations = 3
	recipeInnerSteps  = 15
	recipeIterations  = 5
	recipeProducts    = recipeIterations + 1
	recipeRetain      = 4
	recipeClipNorm    = 0.2
	recipeLambda      = 0.8
	recipeAlpha       = 1.6
)

// Outer is what an outer step consisted of. The parts are means in seconds over the measured repetitions.
type Outer struct {
	Simulations int     `json:"simulations"`  // J of the measured step
	InnerSteps  int     `json:"inner_steps"`  // of each simulation
	Products    int     `json:"products"`     // Hessian–vector products of each simulation
	Direct      float64 `json:"direct_s"`     // per simulation: gradients of harmful and retained pictures, and the teacher
	InnerStep   float64 `json:"inner_step_s"` // per inner step: gradient and update
	Implicit    float64 `json:"implicit_s"`   // per simulation: gradient after fine-tuning and the linear system
	Update      float64 `json:"update_s"`     // clipping and AdamW
	Projected   float64 `json:"projected_s"`  // the public recipe's step: 3·(direct + 15·inner step + implicit) + update
	FLOPs       float64 `json:"-"`            // of the measured step
	count       int     // measured steps
}

// forget drops the times so far.
func (o *Outer) forget() { o.Direct, o.InnerStep, o.Implicit, o.Update, o.count = 0, 0, 0, 0, 0 }

// project works the projection out; n steps were summed up.
func (o *Outer) project() {
	n := float64(o.count)
	j := n * float64(o.Simulations)
	o.Direct, o.InnerStep, o.Implicit, o.Update = o.Direct/j, o.InnerStep/(j*float64(o.InnerSteps)), o.Implicit/j, o.Update/n
	o.Projected = recipeSimulations*(o.Direct+recipeInnerSteps*o.InnerStep+o.Implicit) + o.Update
}

// outerStep is one ResAlign step over an adapter on random data.
type outerStep struct {
	c                    *workload
	net, teacher         *denoise.Network
	theta                denoise.Selection
	outer                *denoise.Descent
	space                *denoise.Space
	harm, retain, tuning *denoise.Batch
	parts                *Outer
}

// outer prepares outer steps with the given numbers of simulations and inner steps.
func (c *workload) outer(simulations, innerSteps int) (work func(context.Context) error, parts *Outer, done func(), err error) {
	net, theta, start, free, err := c.network(true)
	if err != nil {
		return nil, nil, nil, err
	}
	adamW, err := train.DefaultOptimizer(train.AdamW, 2e-4)
	if err != nil {
		free()
		return nil, nil, nil, err
	}
	descent, err := denoise.NewDescent(net, theta, adamW, start)
	if err != nil {
		free()
		return nil, nil, nil, err
	}
	size := max(1, c.outerBatch)
	s := &outerStep{
		c: c, net: net, teacher: denoise.NewNetwork(c.model), theta: theta, outer: descent, space: denoise.NewSpace(c.model.Engine),
		harm: c.randomBatch("harm", size), retain: c.randomBatch("retain", recipeRetain*size), tuning: c.randomBatch("tuning", size),
	}
	pass := forwardFLOPs(c.preset.unet, c.preset.side) * float64(size)
	parts = &Outer{Simulations: simulations, InnerSteps: innerSteps, Products: recipeProducts}
	perSimulation := passes(LoRAStep)*(1+recipeRetain+float64(innerSteps)+1) + recipeRetain + passes(LoRAHessianProduct)*recipeProducts
	parts.FLOPs = float64(simulations) * perSimulation * pass
	s.parts = parts
	return s.do, parts, func() {
		for _, b := range []*denoise.Batch{s.harm, s.retain, s.tuning} {
			b.Free()
		}
		s.outer.Free()
		s.space.Free()
		s.teacher.Free()
		free()
	}, nil
}

func term(c float64, v denoise.Vector) hypergrad.Term[denoise.Vector] {
	return hypergrad.Term[denoise.Vector]{Coefficient: c, Vector: v}
}

// timed adds the time of f to a part.
func timed(part *float64, f func() error) error {
	start := time.Now()
	err := f()
	*part += time.Since(start).Seconds()
	return err
}

func (s *outerStep) do(ctx context.Context) error {
	var total denoise.Vector
	for range s.parts.Simulations {
		var g denoise.Vector
		var end *denoise.Descent
		err := timed(&s.parts.Direct, func() (err error) { g, err = s.direct(ctx); return err })
		if err != nil {
			return err
		}
		if total, err = s.space.Accumulate(total, g); err != nil {
			return err
		}
		if err := timed(&s.parts.InnerStep, func() (err error) { end, err = s.simulate(ctx); return err }); err != nil {
			return err
		}
		err = timed(&s.parts.Implicit, func() (err error) { g, err = s.implicit(ctx, end.Point()); return err })
		end.Free()
		if err != nil {
			return err
		}
		if total, err = s.space.Accumulate(total, g); err != nil {
			return err
		}
	}
	s.parts.count++
	return timed(&s.parts.Update, func() error {
		norm, err := s.space.Norm(total)
		if err != nil {
			return err
		}
		n := float64(s.parts.Simulations)
		if err := train.CheckFinite("hypergradient norm", norm, s.parts.count); err != nil {
			return err
		}
		return s.outer.Step(ctx, total, denoise.ClipScale(norm/n, recipeClipNorm)/n, 1)
	})
}

// direct is (1−λ)∇L_harm(θ) + α∇R(θ).
func (s *outerStep) direct(ctx context.Context) (denoise.Vector, error) {
	p := s.outer.Point()
	_, harm, err := s.net.Gradient(ctx, p, s.theta, denoise.Loss{}, s.harm)
	if err != nil {
		return nil, err
	}
	defer harm.Free()
	taught, err := s.teacher.Teach(ctx, denoise.Point(s.c.model.UNetParams.Tensors), s.retain)
	if err != nil {
		return nil, err
	}
	defer denoise.Vector{taught.Target}.Free()
	_, retain, err := s.net.Gradient(ctx, p, s.theta, denoise.Loss{}, taught)
	if err != nil {
		return nil, err
	}
	defer retain.Free()
	return s.space.Combine(term(recipeLambda-1, harm), term(recipeAlpha, retain))
}

// simulate fine-tunes from θ by gradient descent.
func (s *outerStep) simulate(ctx context.Context) (*denoise.Descent, error) {
	sgd, err := train.DefaultOptimizer(train.SGD, learningRate)
	if err != nil {
		return nil, err
	}
	d, err := denoise.NewDescent(s.net, s.theta, sgd, s.outer.Point())
	if err != nil {
		return nil, err
	}
	for range s.parts.InnerSteps {
		_, g, err := s.net.Gradient(ctx, d.Point(), s.theta, denoise.Loss{}, s.tuning)
		if err == nil {
			err = d.Step(ctx, g, 1, 1)
		}
		if err != nil {
			d.Free()
			return nil, err
		}
	}
	return d, nil
}

// implicit solves (I + γH) x = λ∇L_harm(θ*) as the public recipe does, with γ = 1.
func (s *outerStep) implicit(ctx context.Context, p denoise.Point) (denoise.Vector, error) {
	_, g, err := s.net.Gradient(ctx, p, s.theta, denoise.Loss{}, s.harm)
	if err != nil {
		return nil, err
	}
	defer g.Free()
	right, err := s.space.Combine(term(-recipeLambda, g))
	if err != nil {
		return nil, err
	}
	defer right.Free()
	solve := hypergrad.RichardsonSolver[denoise.Vector](hypergrad.RichardsonOptions{Iterations: recipeIterations, Damping: 1, FinalResidual: true})
	x, _, err := solve(ctx, hypergrad.System[denoise.Vector]{
		Space: s.space, Gamma: 1, Right: right,
		Product: func(v denoise.Vector) (denoise.Vector, error) {
			return s.net.HessianProduct(ctx, p, s.theta, denoise.Loss{}, s.tuning, v)
		},
	})
	return x, err
}
