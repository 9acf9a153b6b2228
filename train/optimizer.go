package train

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"
)

// Names of the optimizers.
const (
	SGD       = "sgd"       // torch.optim.SGD with dampening 0
	Adam      = "adam"      // Kingma and Ba 2015; weight decay is an L2 term in the gradient
	AdamW     = "adamw"     // Loshchilov and Hutter 2019; weight decay is decoupled from the gradient
	Lion      = "lion"      // Chen et al. 2023, algorithm 2; weight decay is decoupled
	Adafactor = "adafactor" // Shazeer and Stern 2018 with a given learning rate; weight decay is decoupled
)

// Optimizers lists the names.
func Optimizers() []string { return []string{SGD, Adam, AdamW, Lion, Adafactor} }

// Optimizer is an update rule, with the meaning that PyTorch gives to the same names. It holds no state: moments are
// tensors that the caller keeps, so that each fine-tuning simulation starts from fresh ones and a checkpoint can hold
// them.
type Optimizer struct {
	Name        string  // one of Optimizers
	LR          float64 // learning rate at a schedule factor of 1
	Beta1       float64 // Adam, AdamW: decay of the mean of gradients. Lion: its share in the direction
	Beta2       float64 // Adam, AdamW: decay of the mean of squared gradients. Lion: decay of the mean of gradients
	Eps         float64 // Adam, AdamW: added to the root of the second moment
	WeightDecay float64
	Momentum    float64 // SGD
	Nesterov    bool    // SGD with momentum
}

// DefaultOptimizer returns the named optimizer with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, and weight decay
// 1e-2 for AdamW, 0 for the others. Lion's betas are those of its paper, 0.9 and 0.99.
func DefaultOptimizer(name string, lr float64) (Optimizer, error) {
	o := Optimizer{Name: name, LR: lr}
	switch name {
	case Adam, AdamW:
		o.Beta1, o.Beta2, o.Eps = 0.9, 0.999, 1e-8
	case Lion:
		o.Beta1, o.Beta2 = 0.9, 0.99
	}
	if name == AdamW {
		o.WeightDecay = 1e-2
	}
	return o, o.Validate()
}

// Validate says what is wrong with the settings, also when one is set that the optimizer does not have.
func (o Optimizer) Validate() error {
	adam := o.HasSecondMoments()
	betas := adam || o.Name == Lion
	switch {
	case !slices.Contains(Optimizers(), o.Name):
		return fmt.Errorf("optimizer %q is unknown; use %s", o.Name, strings.Join(Optimizers(), ", "))
	case !(o.LR >= 0) || math.IsInf(o.LR, 0):
		return o.invalid("learning rate", o.LR, "a finite number ≥ 0")
	case !(o.WeightDecay >= 0) || math.IsInf(o.WeightDecay, 0):
		return o.invalid("weight decay", o.WeightDecay, "a finite number ≥ 0")
	case betas && !(o.Beta1 >= 0 && o.Beta1 < 1):
		return o.invalid("beta1", o.Beta1, "in [0, 1)")
	case betas && !(o.Beta2 >= 0 && o.Beta2 < 1):
		return o.invalid("beta2", o.Beta2, "in [0, 1)")
	case adam && (!(o.Eps > 0) || math.IsInf(o.Eps, 0)):
		return o.invalid("eps", o.Eps, "a finite number above 0")
	case o.Name != SGD && (o.Momentum != 0 || o.Nesterov):
		return fmt.Errorf("optimizer %s has no momentum or nesterov setting; remove it or use %s", o.Name, SGD)
	case !betas && (o.Beta1 != 0 || o.Beta2 != 0), !adam && o.Eps != 0:
		return fmt.Errorf("optimizer %s has no beta1, beta2 or eps setting; remove it or use %s", o.Name, AdamW)
	case !(o.Momentum >= 0 && o.Momentum < 1):
		return o.invalid("momentum", o.Momentum, "in [0, 1)")
	case o.Nesterov && o.Momentum == 0:
		return fmt.Errorf("optimizer %s with nesterov needs a momentum above 0", o.Name)
	}
	return nil
}

func (o Optimizer) invalid(field string, value float64, want string) error {
	return fmt.Errorf("optimizer %s: %s is %v; it must be %s", o.Name, field, value, want)
}

// HasSecondMoments tells whether the second of the state's tensors is the mean of squared gradients, in the parameter's
// shape.
func (o Optimizer) HasSecondMoments() bool { return o.Name == Adam || o.Name == AdamW }

// StateSlots returns how many tensors the optimizer keeps between steps for each parameter. They start as zeros.
func (o Optimizer) StateSlots() int {
	switch {
	case o.HasSecondMoments():
		return 2 // first and second moment
	case o.Name == Adafactor:
		return 2 // factors of the second moment
	case o.Name == Lion, o.Momentum != 0:
		return 1
	}
	return 0
}

// StateShape returns the shape of one of the StateSlots tensors for a parameter of the given shape: that shape, except
// for Adafactor.
func (o Optimizer) StateShape(slot int, param []int) []int {
	if o.Name == Adafactor {
		return adafactorShape(slot, param)
	}
	return slices.Clone(param)
}

// Apply adds one update of one parameter to the graph. lr, the learning rate of this step, and step, which counts from
// 1, are float32 scalars; grad has the shape and type of param, each of the StateSlots tensors in state its StateShape and
// the type of param. Nothing is updated in place. Like all graph builders it panics on wrong operands.
func (o Optimizer) Apply(lr, step *graph.Node, param, grad *graph.Node, state []*graph.Node) (newParam *graph.Node, newState []*graph.Node) {
	if len(state) != o.StateSlots() {
		panic(fmt.Errorf("optimizer %s: %d state tensors given for a parameter of shape %s; it needs %d",
			o.Name, len(state), param.Shape(), o.StateSlots()))
	}
	lr, step = graph.ConvertDType(lr, param.DType()), graph.ConvertDType(step, param.DType())
	switch o.Name {
	case SGD:
		return o.applySGD(lr, param, grad, state)
	case Lion:
		return o.applyLion(lr, param, grad, state[0])
	case Adafactor:
		return o.applyAdafactor(lr, step, param, grad, state)
	}
	return o.applyAdam(lr, step, param, grad, state)
}

func (o Optimizer) applySGD(lr, param, grad *graph.Node, state []*graph.Node) (*graph.Node, []*graph.Node) {
	if o.WeightDecay != 0 {
		grad = graph.Add(grad, graph.MulScalar(param, o.WeightDecay))
	}
	direction := grad
	if o.Momentum != 0 {
		velocity := graph.Add(graph.MulScalar(state[0], o.Momentum), grad)
		direction = velocity
		if o.Nesterov {
			direction = graph.Add(grad, graph.MulScalar(velocity, o.Momentum))
		}
		state = []*graph.Node{velocity}
	}
	return graph.Sub(param, graph.Mul(lr, direction)), state
}

func (o Optimizer) applyAdam(lr, step, param, grad *graph.Node, state []*graph.Node) (*graph.Node, []*graph.Node) {
	if o.WeightDecay != 0 {
		if o.Name == AdamW {
			param = graph.Mul(param, graph.OneMinus(graph.MulScalar(lr, o.WeightDecay)))
		} else {
			grad = graph.Add(grad, graph.MulScalar(param, o.WeightDecay))
		}
	}
	first := graph.Add(graph.MulScalar(state[0], o.Beta1), graph.MulScalar(grad, 1-o.Beta1))
	second := graph.Add(graph.MulScalar(state[1], o.Beta2), graph.MulScalar(graph.Square(grad), 1-o.Beta2))
	root := graph.Div(graph.Sqrt(second), graph.Sqrt(biasCorrection(step, o.Beta2)))
	rate := graph.Div(lr, biasCorrection(step, o.Beta1))
	param = graph.Sub(param, graph.Mul(rate, graph.Div(first, graph.AddScalar(root, o.Eps))))
	return param, []*graph.Node{first, second}
}

// applyLion moves by the sign of a mean of gradients that weighs the newest one more than the mean that is kept does.
func (o Optimizer) applyLion(lr, param, grad, mean *graph.Node) (*graph.Node, []*graph.Node) {
	direction := graph.Sign(graph.Add(graph.MulScalar(mean, o.Beta1), graph.MulScalar(grad, 1-o.Beta1)))
	next := graph.Add(graph.MulScalar(mean, o.Beta2), graph.MulScalar(grad, 1-o.Beta2))
	if o.WeightDecay != 0 {
		param = graph.Mul(param, graph.OneMinus(graph.MulScalar(lr, o.WeightDecay)))
	}
	return graph.Sub(param, graph.Mul(lr, direction)), []*graph.Node{next}
}

// biasCorrection returns 1 − βᵗ. Written as −expm1(t ln β) it keeps all digits in float32, where 1 − 0.999 has lost
// four of seven.
func biasCorrection(step *graph.Node, beta float64) *graph.Node {
	if beta == 0 {
		return graph.ScalarOne(step.Graph(), step.DType())
	}
	return graph.Neg(graph.Expm1(graph.MulScalar(step, math.Log(beta))))
}

// clipEps is the constant of torch.nn.utils.clip_grad_norm_ against division by zero.
const clipEps = 1e-6

// ClipByGlobalNorm scales all gradients by min(1, maxNorm/(norm + 1e-6)), norm being that of all of them together,
// which it returns as a scalar of their type: the rule of torch.nn.utils.clip_grad_norm_. A norm that overflows would
// scale finite gradients to zero, so check the returned norm with [CheckFinite] before the gradients are used. It panics
// without gradients and unless maxNorm is above 0.
func ClipByGlobalNorm(grads []*graph.Node, maxNorm float64) (clipped []*graph.Node, norm *graph.Node) {
	if !(maxNorm > 0) {
		panic(fmt.Errorf("gradient-norm limit is %v; it must be above 0", maxNorm))
	}
	norm = GlobalNorm(grads)
	coefficient := graph.MinScalar(graph.Div(graph.ConstAs(norm, maxNorm), graph.AddScalar(norm, clipEps)), 1.0)
	clipped = make([]*graph.Node, len(grads))
	for i, grad := range grads {
		clipped[i] = graph.Mul(grad, graph.ConvertDType(coefficient, grad.DType()))
	}
	return clipped, norm
}

// GlobalNorm returns the Euclidean norm of all tensors taken as one vector, a scalar of the first one's type. It panics
// without tensors.
func GlobalNorm(tensors []*graph.Node) *graph.Node {
	if len(tensors) == 0 {
		panic(fmt.Errorf("global norm of no tensors; give at least one"))
	}
	var square *graph.Node
	for _, x := range tensors {
		s := graph.ConvertDType(graph.ReduceAllSum(graph.Square(x)), tensors[0].DType())
		if square == nil {
			square = s
		} else {
			square = graph.Add(square, s)
		}
	}
	return graph.Sqrt(square)
}
