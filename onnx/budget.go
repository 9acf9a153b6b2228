package onnx

// budget keeps a small file from asking for any amount of memory or time. What is allowed grows with what the model is given
// and has: the published image networks make arrays of 5 times as many elements, 10 times in all, and multiply some thousand
// times for each.
type budget struct {
	array, all, work int // what remains: elements of one array and of all, and multiplications
}

// The limits, by elements of inputs and weights, and what any model may have.
const (
	arrayFactor, arrayFloor = 64, 1 << 20
	allFactor, allFloor     = 128, 1 << 24
	workFactor, workFloor   = 1 << 20, 1 << 30
)

// maxElements is more than any model has in memory.
const maxElements = 1 << 32

func newBudget(elements int) budget {
	elements = min(elements, maxElements)
	return budget{elements*arrayFactor + arrayFloor, elements*allFactor + allFloor, elements*workFactor + workFloor}
}

// fits makes sure that an array is not too large before it is made, and counts it.
func (l *lowering) fits(dims ...int) {
	n := checkedSize(dims)
	if n < 1 || n > l.budget.array {
		fail("makes an array of shape %v, which is empty or too large for this model: more than %d elements", dims, l.budget.array)
	}
	l.charge(n)
}

// charge counts elements of arrays.
func (l *lowering) charge(n int) {
	if l.budget.all -= n; l.budget.all < 0 {
		fail("makes the arrays of the network too large, all together, for this model")
	}
}

// spend counts multiplications, and ends what would take unreasonably long.
func (l *lowering) spend(factors ...int) {
	total := 1
	for _, f := range factors {
		if f > 0 && total > l.budget.work/f {
			fail("makes the network unreasonably slow for its size")
		}
		total *= f
	}
	l.budget.work -= total
}
