package svd

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// Factors are A = U·diag(S)·Vᵀ for A [rows, columns], with r the shorter of both. Columns of U and rows of Vᵀ are
// orthonormal; S falls and is not negative.
type Factors struct {
	Rows, Columns int
	U             []float64 // [rows, r]
	S             []float64 // [r]
	Vt            []float64 // [r, columns]
}

// Rank is the number of singular values, zeros among them.
func (f *Factors) Rank() int { return min(f.Rows, f.Columns) }

// Decomposer decomposes matrices with an engine. It may be used concurrently.
type Decomposer struct {
	gram, product *engine.Function
}

// New prepares a decomposer; Free it after use.
func New(e *engine.Engine) (*Decomposer, error) {
	compile := func(name string, transpose bool) (*engine.Function, error) {
		return ad.Compile(e, name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
			return []*ad.Value{ad.MatMul(in[0], in[1], false, transpose)}
		})
	}
	gram, err := compile("A·Bᵀ", true)
	if err != nil {
		return nil, err
	}
	product, err := compile("A·B", false)
	if err != nil {
		gram.Free()
		return nil, err
	}
	return &Decomposer{gram: gram, product: product}, nil
}

// Free releases the compiled products.
func (d *Decomposer) Free() {
	d.gram.Free()
	d.product.Free()
}

// orthogonal is the largest cosine of two singular vectors that counts as none: far below the rounding of float32.
const orthogonal = 1e-9

// null is the share of the largest singular value below which one is rounding, as is its direction.
const null = 1e-13

// Decompose factors the matrix a [rows, columns]. It is an error if a number is not finite.
func (d *Decomposer) Decompose(a []float32, rows, columns int) (*Factors, error) {
	if rows < 1 || columns < 1 || len(a) != rows*columns {
		return nil, fmt.Errorf("svd: %d numbers are not a matrix of %d×%d", len(a), rows, columns)
	}
	largest := 0.0
	for i, v := range a {
		x := math.Abs(float64(v))
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, fmt.Errorf("svd: number %d of a matrix of %d×%d is %v; weights must be finite", i, rows, columns, v)
		}
		largest = max(largest, x)
	}
	if rows > columns {
		turned, err := d.Decompose(transpose(a, rows, columns), columns, rows)
		if err != nil {
			return nil, err
		}
		return &Factors{
			Rows: rows, Columns: columns, S: turned.S,
			U: transpose(turned.Vt, columns, rows), Vt: transpose(turned.U, columns, columns),
		}, nil
	}
	b := make([]float64, len(a))
	scale := 1.0
	if largest > 0 {
		scale = largest // squares of tiny or huge numbers would leave float64
	}
	for i, v := range a {
		b[i] = float64(v) / scale
	}
	left, b, err := d.diagonalise(b, rows, columns)
	if err != nil {
		return nil, err
	}
	if err := d.polish(left, b, rows, columns); err != nil {
		return nil, err
	}
	return assemble(left, b, rows, columns, scale), nil
}

// diagonalise returns the eigenvectors of B·Bᵀ as rows, R, and R·B.
func (d *Decomposer) diagonalise(b []float64, rows, columns int) (vectors, rotated []float64, err error) {
	gram, err := call(d.gram, b, rows, columns, b, rows, columns)
	if err != nil {
		return nil, nil, err
	}
	vectors, err = eigenvectors(gram, rows)
	if err != nil {
		return nil, nil, err
	}
	rotated, err = call(d.product, vectors, rows, rows, b, rows, columns)
	return vectors, rotated, err
}

// polish rotates pairs of rows of b, and of left with them, until all are orthogonal.
func (d *Decomposer) polish(left, b []float64, rows, columns int) error {
	for range 40 {
		gram, err := call(d.gram, b, rows, columns, b, rows, columns)
		if err != nil {
			return err
		}
		largest := 0.0
		for i := range rows {
			largest = max(largest, gram[i*rows+i])
		}
		floor := null * null * largest
		rotations := 0
		for i := range rows {
			for j := i + 1; j < rows; j++ {
				p, q, r := gram[i*rows+i], gram[j*rows+j], gram[i*rows+j]
				if p <= floor || q <= floor || math.Abs(r) <= orthogonal*math.Sqrt(p*q) {
					continue
				}
				// The angle is of the rows as they are now: earlier rotations of this round moved them.
				x, y := b[i*columns:][:columns], b[j*columns:][:columns]
				c, s := jacobi(dot(x, x), dot(y, y), dot(x, y))
				rotate(x, y, c, s)
				rotate(left[i*rows:][:rows], left[j*rows:][:rows], c, s)
				rotations++
			}
		}
		if rotations == 0 {
			return nil
		}
	}
	return fmt.Errorf("svd: the rows of a matrix of %d×%d do not become orthogonal", rows, columns)
}

// jacobi is the rotation that makes two rows with squared lengths p and q and inner product r orthogonal.
func jacobi(p, q, r float64) (c, s float64) {
	if r == 0 {
		return 1, 0
	}
	// tan 2φ = 2r/(p − q), and the smaller of the two angles.
	cot := (p - q) / (2 * r)
	t := 1 / (math.Abs(cot) + math.Sqrt(1+cot*cot))
	if cot < 0 {
		t = -t
	}
	c = 1 / math.Sqrt(1+t*t)
	return c, t * c
}

// assemble sorts the rows of b by length and splits them into lengths and directions.
func assemble(left, b []float64, rows, columns int, scale float64) *Factors {
	f := &Factors{Rows: rows, Columns: columns, U: make([]float64, rows*rows), S: make([]float64, rows), Vt: make([]float64, rows*columns)}
	lengths, order := make([]float64, rows), make([]int, rows)
	for i := range rows {
		row := b[i*columns:][:columns]
		lengths[i], order[i] = math.Sqrt(dot(row, row)), i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(lengths[j], lengths[i]) })
	for k, i := range order {
		for j := range rows {
			f.U[j*rows+k] = left[i*rows+j]
		}
		if lengths[i] <= null*lengths[order[0]] { // also where all are zero
			complete(f.Vt[:k*columns], f.Vt[k*columns:][:columns])
			continue
		}
		f.S[k] = lengths[i] * scale
		for j, v := range b[i*columns:][:columns] {
			f.Vt[k*columns+j] = v / lengths[i]
		}
	}
	return f
}

// complete makes next a unit vector that is orthogonal to the given orthonormal rows, of which there are fewer than
// columns: what is left of the coordinate vector that they cover least.
func complete(rows, next []float64) {
	columns := len(next)
	covered := make([]float64, columns)
	for i, v := range rows {
		covered[i%columns] += v * v
	}
	least := 0
	for j, v := range covered {
		if v < covered[least] {
			least = j
		}
	}
	clear(next)
	next[least] = 1
	for range 2 { // once leaves rounding behind where little of the vector is left
		for row := range slices.Chunk(rows, columns) {
			if d := dot(row, next); d != 0 {
				add(next, row, -d)
			}
		}
		length := math.Sqrt(dot(next, next))
		for j := range next {
			next[j] /= length
		}
	}
}

// call runs a product of two matrices.
func call(f *engine.Function, a []float64, m, k int, b []float64, n, l int) ([]float64, error) {
	x, y := engine.Float64s(a, m, k), engine.Float64s(b, n, l)
	defer engine.Free(x, y)
	out, err := f.Call(x, y)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out...)
	var values []float64
	err = out[0].ConstFlatData(func(flat any) {
		if v, ok := flat.([]float64); ok {
			values = slices.Clone(v)
		}
	})
	if err == nil && values == nil {
		err = fmt.Errorf("%w: a product of float64 matrices is not float64", engine.ErrInternal)
	}
	return values, err
}

func transpose[T any](a []T, rows, columns int) []T {
	out := make([]T, len(a))
	for i := range rows {
		for j := range columns {
			out[j*rows+i] = a[i*columns+j]
		}
	}
	return out
}
