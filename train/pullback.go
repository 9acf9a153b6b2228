package train

import (
	"fmt"
	"math"

	"github.com/gomlx/gomlx/core/graph"
)

// Adjoints are the derivatives of a scalar with respect to what one update reads: the parameter, its gradient and the
// state before it.
type Adjoints struct {
	Param, Grad *graph.Node
	State       []*graph.Node
}

// CheckReversible says that an optimizer has no Pullback, so that no derivative can be taken back through its steps.
func (o Optimizer) CheckReversible() error {
	if o.Name == Adafactor {
		return fmt.Errorf("no derivative is taken back through the steps of optimizer %s, whose factored moments tie a whole matrix together; use %s", o.Name, AdamW)
	}
	return nil
}

// Pullback is the reverse of [Optimizer.Apply], for unrolled differentiation: param, grad and state are what Apply was
// given, and param′ and state′ derivatives of a scalar with respect to what it returned. The second moment's root has an
// infinite derivative at zero; there, where the first moment is zero as well, the derivative is taken as zero. The sign
// that Lion moves by has the derivative zero, so that its steps pass nothing on by way of their gradients. Adafactor has
// no Pullback; see [Optimizer.CheckReversible].
func (o Optimizer) Pullback(lr, step, param, grad *graph.Node, state []*graph.Node, adjoint *graph.Node, stateAdjoints []*graph.Node) Adjoints {
	if len(state) != o.StateSlots() || len(stateAdjoints) != len(state) {
		panic(fmt.Errorf("optimizer %s: %d state tensors and %d derivatives given; it needs %d of each", o.Name, len(state), len(stateAdjoints), o.StateSlots()))
	}
	if err := o.CheckReversible(); err != nil {
		panic(err)
	}
	lr = graph.ConvertDType(lr, param.DType())
	switch o.Name {
	case SGD:
		return o.pullbackSGD(lr, adjoint, stateAdjoints)
	case Lion:
		return o.pullbackLion(lr, adjoint, stateAdjoints[0])
	}
	return o.pullbackAdam(lr, graph.ConvertDType(step, param.DType()), param, grad, state, adjoint, stateAdjoints)
}

func (o Optimizer) pullbackSGD(lr, adjoint *graph.Node, stateAdjoints []*graph.Node) Adjoints {
	direction := graph.Neg(graph.Mul(lr, adjoint))
	a := Adjoints{Param: adjoint, Grad: direction}
	if o.Momentum != 0 {
		velocity := graph.Add(stateAdjoints[0], direction)
		if o.Nesterov {
			velocity = graph.Add(stateAdjoints[0], graph.MulScalar(direction, o.Momentum))
			a.Grad = graph.Add(direction, velocity)
		} else {
			a.Grad = velocity
		}
		a.State = []*graph.Node{graph.MulScalar(velocity, o.Momentum)}
	}
	if o.WeightDecay != 0 {
		a.Param = graph.Add(a.Param, graph.MulScalar(a.Grad, o.WeightDecay))
	}
	return a
}

func (o Optimizer) pullbackLion(lr, adjoint, stateAdjoint *graph.Node) Adjoints {
	a := Adjoints{
		Param: adjoint, Grad: graph.MulScalar(stateAdjoint, 1-o.Beta2),
		State: []*graph.Node{graph.MulScalar(stateAdjoint, o.Beta2)},
	}
	if o.WeightDecay != 0 {
		a.Param = graph.Mul(adjoint, graph.OneMinus(graph.MulScalar(lr, o.WeightDecay)))
	}
	return a
}

func (o Optimizer) pullbackAdam(lr, step, param, grad *graph.Node, state []*graph.Node, adjoint *graph.Node, stateAdjoints []*graph.Node) Adjoints {
	raw := grad
	if o.WeightDecay != 0 && o.Name == Adam {
		grad = graph.Add(grad, graph.MulScalar(param, o.WeightDecay))
	}
	first := graph.Add(graph.MulScalar(state[0], o.Beta1), graph.MulScalar(grad, 1-o.Beta1))
	second := graph.Add(graph.MulScalar(state[1], o.Beta2), graph.MulScalar(graph.Square(grad), 1-o.Beta2))
	correction := graph.Sqrt(biasCorrection(step, o.Beta2))
	root := graph.Sqrt(second)
	divisor := graph.AddScalar(graph.Div(root, correction), o.Eps)
	rate := graph.Div(lr, biasCorrection(step, o.Beta1))

	towards := graph.Neg(graph.Div(graph.Mul(rate, adjoint), divisor)) // with respect to the first moment
	dFirst := graph.Add(stateAdjoints[0], towards)
	// d(−rate·first/divisor)/d(divisor) = rate·first/divisor², and d(divisor)/d(second) = 1/(2·root·correction).
	dDivisor := graph.Neg(graph.Div(graph.Mul(towards, first), divisor))
	half := graph.MulScalar(graph.Mul(graph.AddScalar(root, smallestRoot), correction), 2)
	dSecond := graph.Add(stateAdjoints[1], graph.Div(dDivisor, half))

	a := Adjoints{Param: adjoint, State: []*graph.Node{graph.MulScalar(dFirst, o.Beta1), graph.MulScalar(dSecond, o.Beta2)}}
	a.Grad = graph.Add(graph.MulScalar(dFirst, 1-o.Beta1), graph.MulScalar(graph.Mul(grad, dSecond), 2*(1-o.Beta2)))
	if o.WeightDecay != 0 {
		if o.Name == AdamW {
			a.Param = graph.Mul(adjoint, graph.OneMinus(graph.MulScalar(lr, o.WeightDecay)))
		} else {
			a.Param = graph.Add(adjoint, graph.MulScalar(a.Grad, o.WeightDecay))
		}
	}
	if !raw.Shape().Equal(a.Grad.Shape()) {
		panic(fmt.Errorf("optimizer %s: a derivative of shape %s for a gradient of shape %s", o.Name, a.Grad.Shape(), raw.Shape()))
	}
	return a
}

// smallestRoot keeps 0/0 from the derivative of a root at zero; it is far below any second moment's root that float32
// arithmetic can tell from zero.
var smallestRoot = math.Sqrt(math.SmallestNonzeroFloat32) * 1e2
