package onnx

import (
	"fmt"
)

// String names an operator in errors: its kind, and the node's name or else its first output.
func (n *node) String() string {
	name := n.name
	if name == "" && len(n.outputs) > 0 {
		name = n.outputs[0]
	}
	op := n.op
	if !standardDomain(n.domain) {
		op = n.domain + "." + op
	}
	return fmt.Sprintf("the operator %s (node %q)", op, name)
}

func (d *decoder) graph(message []byte) error {
	m := d.model
	return fields(message, func(f field) error {
		switch f.number {
		case 1, 5, 11, 12, 15:
			if err := f.want(blob, "graph"); err != nil {
				return err
			}
		}
		switch f.number {
		case 1:
			if len(m.nodes) == maxNodes {
				return fmt.Errorf("its graph has more than %d operators", maxNodes)
			}
			n, err := d.node(f.bytes)
			if err != nil {
				return err
			}
			m.nodes = append(m.nodes, n)
		case 5:
			if len(m.weights) == maxNodes {
				return fmt.Errorf("its graph has more than %d weights", maxNodes)
			}
			a, name, err := d.tensor(f.bytes)
			switch {
			case err != nil:
				return err
			case name == "" || m.weights[name] != nil:
				return fmt.Errorf("the weight %q has no name of its own", name)
			}
			m.weights[name] = a
		case 11, 12:
			ports := &m.Inputs
			if f.number == 12 {
				ports = &m.Outputs
			}
			if len(*ports) == maxNodes {
				return fmt.Errorf("its graph has more than %d inputs or outputs", maxNodes)
			}
			p, err := port(f.bytes)
			if err != nil {
				return err
			}
			*ports = append(*ports, p)
		case 15:
			return fmt.Errorf("its graph has sparse weights, which are not read; export them dense")
		}
		return nil
	})
}

func (d *decoder) node(message []byte) (*node, error) {
	n := &node{}
	err := fields(message, func(f field) error {
		switch f.number {
		case 1, 2:
			list := &n.inputs
			if f.number == 2 {
				list = &n.outputs
			}
			if len(*list) == maxNames {
				return fmt.Errorf("%s has more than %d inputs or outputs", n, maxNames)
			}
			*list = append(*list, "")
			return f.text("input or output", &(*list)[len(*list)-1])
		case 3:
			return f.text("name", &n.name)
		case 4:
			return f.text("op_type", &n.op)
		case 5:
			if err := f.want(blob, "attribute"); err != nil {
				return err
			}
			a, name, err := d.attribute(f.bytes)
			if err != nil {
				return fmt.Errorf("%s, attribute %q: %w", n, name, err)
			}
			if n.attributes == nil {
				n.attributes = map[string]*attribute{}
			}
			if n.attributes[name] != nil || len(n.attributes) == maxNames {
				return fmt.Errorf("%s has the attribute %q twice, or too many", n, name)
			}
			n.attributes[name] = a
		case 7:
			return f.text("domain", &n.domain)
		}
		return nil
	})
	if err == nil && len(n.outputs) == 0 {
		err = fmt.Errorf("%s has no output", n)
	}
	return n, err
}

func (d *decoder) attribute(message []byte) (*attribute, string, error) {
	a := &attribute{}
	var name string
	err := fields(message, func(f field) (err error) {
		switch f.number {
		case 1:
			return f.text("name", &name)
		case 2:
			var one []float32
			if err = f.floats("f", &one); err == nil && len(one) > 0 {
				a.f = one[0]
			}
		case 3:
			err = f.integer("i", &a.i)
		case 4:
			err = f.text("s", &a.s)
		case 5:
			if err = f.want(blob, "t"); err == nil {
				a.tensor, _, err = d.tensor(f.bytes)
			}
		case 6, 11:
			a.subgraph = true
		case 7:
			err = f.floats("floats", &a.floats)
		case 8:
			err = f.integers("ints", &a.ints)
		case 9:
			if len(a.strings) < maxNames {
				a.strings = append(a.strings, "")
				err = f.text("strings", &a.strings[len(a.strings)-1])
			}
		case 20:
			err = f.integer("type", &a.kind)
		}
		return err
	})
	return a, name, err
}

// port reads a ValueInfoProto.
func port(message []byte) (Port, error) {
	var p Port
	inside := func(number int, name string, visit func([]byte) error) func(field) error {
		return func(f field) error {
			if f.number != number {
				return nil
			}
			if err := f.want(blob, name); err != nil {
				return err
			}
			return visit(f.bytes)
		}
	}
	dimension := func(message []byte) error {
		size := int64(-1)
		err := fields(message, func(f field) error {
			if f.number == 1 {
				return f.integer("dim_value", &size)
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case len(p.Shape) == maxRank:
			return fmt.Errorf("%q has more than %d dimensions", p.Name, maxRank)
		case size <= 0 || size >= maxExtent:
			size = -1
		}
		p.Shape = append(p.Shape, int(size))
		return nil
	}
	tensor := func(message []byte) error {
		return fields(message, func(f field) error {
			switch f.number {
			case 1:
				var t int64
				err := f.integer("elem_type", &t)
				p.Type = DType(t)
				return err
			case 2:
				if err := f.want(blob, "shape"); err != nil {
					return err
				}
				p.Shape = []int{}
				return fields(f.bytes, inside(1, "dim", dimension))
			}
			return nil
		})
	}
	err := fields(message, func(f field) error {
		switch f.number {
		case 1:
			return f.text("name", &p.Name)
		case 2:
			if err := f.want(blob, "type"); err != nil {
				return err
			}
			return fields(f.bytes, inside(1, "tensor_type", tensor))
		}
		return nil
	})
	return p, err
}
