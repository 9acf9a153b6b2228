package denoise

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// Pullback is Jᵀu for the Jacobian J of the prediction by the selected parameters: the gradient of whatever loss has the
// derivative u by the prediction, whose shape u has. The batch needs neither target nor weights.
func (n *Network) Pullback(ctx context.Context, p Point, s Selection, b *Batch, u *engine.Tensor) (Vector, error) {
	name := fmt.Sprintf("pullback by %s", s.name)
	return n.call(ctx, name, p, Vector{u}, b.conditions(n.Model.XL), func(p, u, b []*ad.Value) []*ad.Value {
		return ad.Pullback(n.predict(p, b), u[0], s.values(p)...)
	})
}
