package plan

import "math/bits"

// pool is one generation of the engine's free arrays. Go's sync.Pool, which holds them, keeps one array of each size for
// each processor to itself, where no other processor finds it.
type pool struct {
	private []map[int]block // by processor and size
	shared  map[int][]block // by size
	bytes   int
}

func newPool(places int) pool {
	p := pool{private: make([]map[int]block, places), shared: map[int][]block{}}
	for i := range p.private {
		p.private[i] = map[int]block{}
	}
	return p
}

func (p *pool) take(size, place int) (block, bool) {
	b, ok := p.private[place][size]
	if ok {
		delete(p.private[place], size)
	} else if list := p.shared[size]; len(list) > 0 {
		b, ok = list[len(list)-1], true
		p.shared[size] = list[:len(list)-1]
	}
	if ok {
		p.bytes -= size
	}
	return b, ok
}

func (p *pool) put(b block, place int) {
	if _, taken := p.private[place][b.size]; taken {
		p.shared[b.size] = append(p.shared[b.size], b)
	} else {
		p.private[place][b.size] = b
	}
	p.bytes += b.size
}

func (p *pool) all() []block {
	var out []block
	for _, private := range p.private {
		for _, b := range private {
			out = append(out, b)
		}
	}
	for _, list := range p.shared {
		out = append(out, list...)
	}
	return out
}

// bucket is the size of the array that the engine's pool hands out for a request: powers of two and halfway between.
func bucket(bytes int) int {
	if bytes <= 2 {
		return bytes
	}
	power := 1 << (bits.Len(uint(bytes)) - 1)
	switch {
	case bytes == power:
		return power
	case bytes <= power+power/2:
		return power + power/2
	}
	return 2 * power
}
