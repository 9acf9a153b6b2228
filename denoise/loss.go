package denoise

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// Loss is Σᵢ wᵢ·min(‖ε_θ(zᵢ, tᵢ, cᵢ) − targetᵢ‖², Cap) over the samples of a batch, where ‖·‖² is the mean over
// elements and wᵢ the batch's weights (1/B each unless set otherwise).
type Loss struct {
	// Cap bounds the error of one sample, from which on it has no gradient; 0 is no bound. Gradient ascent needs it on
	// models so small that the unbounded loss destroys them.
	Cap float64
}

func (l Loss) build(n *Network, p, b []*ad.Value) *ad.Value {
	bounded, _ := l.withError(n, p, b)
	return bounded
}

// withError is the loss, and what it would be without its bound.
func (l Loss) withError(n *Network, p, b []*ad.Value) (bounded, whole *ad.Value) {
	target, weights := b[len(b)-2], b[len(b)-1]
	e := ad.Square(ad.Sub(n.predict(p, b), target))
	batch := e.Dim(0)
	perSample := ad.Scale(ad.SumTo(e, batch, 1, 1, 1), float64(batch)/float64(e.Size()))
	weights = ad.Reshape(weights, batch, 1, 1, 1)
	whole = ad.SumAll(ad.Mul(perSample, weights))
	if l.Cap == 0 {
		return whole, whole
	}
	return ad.SumAll(ad.Mul(ad.Minimum(perSample, l.Cap), weights)), whole
}

// Value is the loss of a batch at a point.
func (n *Network) Value(ctx context.Context, p Point, l Loss, b *Batch) (float64, error) {
	out, err := n.call(ctx, n.valueGraph(l), p, nil, b.inputs(n.Model.XL))
	if err != nil {
		return 0, err
	}
	defer engine.Free(out...)
	return engine.ScalarValue(out[0])
}

// Gradient is the loss and its derivatives with respect to the selected parameters.
func (n *Network) Gradient(ctx context.Context, p Point, s Selection, l Loss, b *Batch) (float64, Vector, error) {
	out, err := n.call(ctx, n.GradientGraph(s, l), p, nil, b.inputs(n.Model.XL))
	if err != nil {
		return 0, nil, err
	}
	defer engine.Free(out[0])
	loss, err := engine.ScalarValue(out[0])
	return loss, out[1:], err
}

// GradientWithError is Gradient and, beside the loss, the error that it bounds.
func (n *Network) GradientWithError(ctx context.Context, p Point, s Selection, l Loss, b *Batch) (loss, whole float64, g Vector, err error) {
	out, err := n.call(ctx, n.GradientWithErrorGraph(s, l), p, nil, b.inputs(n.Model.XL))
	if err != nil {
		return 0, 0, nil, err
	}
	defer engine.Free(out[:2]...)
	if loss, err = engine.ScalarValue(out[0]); err == nil {
		whole, err = engine.ScalarValue(out[1])
	}
	return loss, whole, out[2:], err
}

// Pullback is Jᵀu for the Jacobian J of the prediction by the selected parameters: the gradient of whatever loss has the
// derivative u by the prediction, whose shape u has. The batch needs neither target nor weights.
func (n *Network) Pullback(ctx context.Context, p Point, s Selection, b *Batch, u *engine.Tensor) (Vector, error) {
	return n.call(ctx, n.PullbackGraph(s), p, Vector{u}, b.conditions(n.Model.XL))
}

// HessianProduct is H·v for the Hessian of the loss with respect to the selected parameters. This and the products below
// are computed in float32 always.
func (n *Network) HessianProduct(ctx context.Context, p Point, s Selection, l Loss, b *Batch, v Vector) (Vector, error) {
	return n.Exact().call(ctx, n.HessianProductGraph(s, l), p, v, b.inputs(n.Model.XL))
}

// GaussNewtonProduct is G·v for the Gauss–Newton matrix of the loss, JᵀWJ with the Jacobian J of the prediction: the
// Hessian without the curvature of the network. It has no negative eigenvalue. J·v is the derivative by u of ⟨Jᵀu, v⟩,
// so that no forward mode is needed. The loss must have no cap.
func (n *Network) GaussNewtonProduct(ctx context.Context, p Point, s Selection, l Loss, b *Batch, v Vector) (Vector, error) {
	if l.Cap != 0 {
		return nil, fmt.Errorf("%w: a Gauss–Newton product of a bounded loss", engine.ErrInternal)
	}
	return n.Exact().call(ctx, n.GaussNewtonProductGraph(s), p, v, b.inputs(n.Model.XL))
}

// CrossProduct is ∇_outer ⟨∇_inner loss, u⟩ for a fixed u with one array for each of the inner parameters.
func (n *Network) CrossProduct(ctx context.Context, p Point, outer, inner Selection, l Loss, b *Batch, u Vector) (Vector, error) {
	return n.Exact().call(ctx, n.CrossProductGraph(outer, inner, l), p, u, b.inputs(n.Model.XL))
}
