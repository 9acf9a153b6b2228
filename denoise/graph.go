package denoise

import (
	"fmt"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/train"
)

// Graph is a computation before it is compiled. Runs compile it for their engine; package plan compiles the same to count what it
// takes.
type Graph struct {
	Name  string // what is computed; in errors
	Key   string // of all that the graph depends on but the shapes of its inputs
	Build func(t *ad.Tape, in []*ad.Value) []*ad.Value
}

// shared is the compiled graph, from others that need it too or made now.
func (g Graph) shared(e *engine.Engine) (*engine.Function, error) {
	return ad.Shared(e, g.Key, g.Name, g.Build)
}

// graph is one of the network's: of all its parameters, so many directions in parameter or prediction space, and what of
// a batch follows.
func (n *Network) graph(name string, directions int, build func(p, v, b []*ad.Value) []*ad.Value) Graph {
	np := len(n.specs)
	return Graph{name, n.architecture + name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return build(in[:np], in[np:np+directions], in[np+directions:])
	}}
}

// PredictionGraph is the graph of [Network.Predict]: parameters and conditions of a batch to the prediction.
func (n *Network) PredictionGraph() Graph {
	return n.graph("prediction", 0, func(p, _, b []*ad.Value) []*ad.Value {
		return []*ad.Value{n.predict(p, b)}
	})
}

// EmbeddingGraph is the graph of [Network.Embedding]: parameters and the ids of prompts to the context, and to what is pooled of it.
func (n *Network) EmbeddingGraph() Graph {
	return n.graph("text embedding", 0, func(p, _, b []*ad.Value) []*ad.Value {
		context, pooled := n.text.encode(p, b[0])
		if pooled == nil {
			return []*ad.Value{context}
		}
		return []*ad.Value{context, pooled}
	})
}

func (n *Network) valueGraph(l Loss) Graph {
	return n.graph(fmt.Sprintf("loss %v", l), 0, func(p, _, b []*ad.Value) []*ad.Value {
		return []*ad.Value{l.build(n, p, b)}
	})
}

// GradientGraph is the graph of [Network.Gradient]: parameters and a batch to the loss and its derivatives.
func (n *Network) GradientGraph(s Selection, l Loss) Graph {
	return n.graph(fmt.Sprintf("gradient %v by %s", l, s.name), 0, func(p, _, b []*ad.Value) []*ad.Value {
		loss := l.build(n, p, b)
		return append([]*ad.Value{loss}, ad.Gradient(loss, s.values(p)...)...)
	})
}

// GradientWithErrorGraph is the graph of [Network.GradientWithError]: parameters and a batch to the loss, the error that it
// bounds, and the loss's derivatives.
func (n *Network) GradientWithErrorGraph(s Selection, l Loss) Graph {
	return n.graph(fmt.Sprintf("gradient with error %v by %s", l, s.name), 0, func(p, _, b []*ad.Value) []*ad.Value {
		loss, whole := l.withError(n, p, b)
		return append([]*ad.Value{loss, ad.Scale(whole, 1)}, ad.Gradient(loss, s.values(p)...)...)
	})
}

// PullbackGraph is the graph of [Network.Pullback]: parameters, a direction in the shape of predictions and the conditions
// of a batch to derivatives.
func (n *Network) PullbackGraph(s Selection) Graph {
	return n.graph(fmt.Sprintf("pullback by %s", s.name), 1, func(p, u, b []*ad.Value) []*ad.Value {
		return ad.Pullback(n.predict(p, b), u[0], s.values(p)...)
	})
}

// HessianProductGraph is the graph of [Network.HessianProduct]: parameters, a direction of the selected ones and a batch to
// the product. It is of [Network.Exact], as the two that follow are.
func (n *Network) HessianProductGraph(s Selection, l Loss) Graph {
	n = n.Exact()
	return n.graph(fmt.Sprintf("Hessian product %v by %s", l, s.name), s.Len(), func(p, v, b []*ad.Value) []*ad.Value {
		return ad.HessianProduct(l.build(n, p, b), s.values(p), v)
	})
}

// GaussNewtonProductGraph is the graph of [Network.GaussNewtonProduct] for a loss without a cap.
func (n *Network) GaussNewtonProductGraph(s Selection) Graph {
	n = n.Exact()
	return n.graph(fmt.Sprintf("Gauss–Newton product by %s", s.name), s.Len(), func(p, v, b []*ad.Value) []*ad.Value {
		prediction, weights := n.predict(p, b), b[len(b)-1]
		u := ad.StopGradient(prediction)
		forward := ad.Gradient(ad.Dot(ad.Pullback(prediction, u, s.values(p)...), v), u)[0]
		batch := prediction.Dim(0)
		perSample := ad.Scale(ad.Reshape(weights, batch, 1, 1, 1), 2*float64(batch)/float64(prediction.Size()))
		return ad.Pullback(prediction, ad.Mul(perSample, forward), s.values(p)...)
	})
}

// CrossProductGraph is the graph of [Network.CrossProduct]: parameters, a direction of the inner ones and a batch to
// derivatives by the outer ones.
func (n *Network) CrossProductGraph(outer, inner Selection, l Loss) Graph {
	n = n.Exact()
	return n.graph(fmt.Sprintf("cross product %v by %s and %s", l, outer.name, inner.name), inner.Len(), func(p, u, b []*ad.Value) []*ad.Value {
		inward := ad.Gradient(l.build(n, p, b), inner.values(p)...)
		return ad.Gradient(ad.Dot(inward, u), outer.values(p)...)
	})
}

// ruleOnly is an optimizer without its learning rate, which does not enter the compiled step.
func ruleOnly(o train.Optimizer) train.Optimizer {
	o.LR = 0
	return o
}

// descentGraph is a graph of an optimizer over so many parameters.
func descentGraph(what string, o train.Optimizer, parameters int, build func(t *ad.Tape, in []*ad.Value) []*ad.Value) Graph {
	name := fmt.Sprintf("%s %+v of %d parameters", what, ruleOnly(o), parameters)
	return Graph{name, "descent: " + name, build}
}
