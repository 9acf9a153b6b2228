package tokenizer

// merge says what two neighbouring tokens become, and how early: merges of lower rank go first.
type merge struct {
	rank int32
	id   int32
}

// merges is keyed by pair(left, right).
type merges map[uint64]merge

func pair(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// symbol is one piece of a word while it is being merged; the pieces form a list linked both ways.
type symbol struct {
	id         int32
	size       int32 // bytes of the word it stands for; 0 once it was merged into its left neighbour
	prev, next int32 // −1 at the ends
}

// piece is a token of an encoded word.
type piece struct {
	id   int32
	size int // bytes of the word
}

// encodeWord splits a word into tokens by byte-pair encoding: starting from single bytes, the neighbouring pair of the
// lowest rank is merged, the leftmost of equals first, until no pair can be. The work is O(n log n) in the length of
// the word, so a hostile megabyte without a space costs no more than a second.
func (t *Tokenizer) encodeWord(word string) []piece {
	if word == "" {
		return nil
	}
	symbols := make([]symbol, len(word))
	for i := range len(word) {
		symbols[i] = symbol{id: t.byteID[word[i]], size: 1, prev: int32(i - 1), next: int32(i + 1)}
	}
	last := len(word) - 1
	symbols[last].id, symbols[last].next = t.lastByteID[word[last]], -1

	var queue mergeQueue
	propose := func(left int32) {
		if left < 0 || symbols[left].next < 0 {
			return
		}
		if m, ok := t.merges[pair(symbols[left].id, symbols[symbols[left].next].id)]; ok {
			queue.push(uint64(m.rank)<<32 | uint64(left))
		}
	}
	for i := range symbols {
		propose(int32(i))
	}
	for len(queue) > 0 {
		top := queue.pop()
		rank, left := int32(top>>32), int32(uint32(top))
		s := &symbols[left]
		if s.size == 0 || s.next < 0 {
			continue // proposed before a neighbour took it
		}
		right := &symbols[s.next]
		m, ok := t.merges[pair(s.id, right.id)]
		if !ok || m.rank != rank {
			continue // one of the two has changed since
		}
		s.id, s.size, s.next = m.id, s.size+right.size, right.next
		right.size = 0
		if s.next >= 0 {
			symbols[s.next].prev = left
		}
		propose(s.prev)
		propose(left)
	}

	var pieces []piece
	for i := int32(0); i >= 0; i = symbols[i].next {
		pieces = append(pieces, piece{symbols[i].id, int(symbols[i].size)})
	}
	return pieces
}

// mergeQueue is a binary heap of rank<<32 | position, smallest first.
type mergeQueue []uint64

func (q *mergeQueue) push(v uint64) {
	h := append(*q, v)
	i := len(h) - 1
	for i > 0 && h[(i-1)/2] > v {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = v
	*q = h
}

func (q *mergeQueue) pop() uint64 {
	h := *q
	top, v := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	for i := 0; len(h) > 0; {
		child := 2*i + 1
		if child+1 < len(h) && h[child+1] < h[child] {
			child++
		}
		if child >= len(h) || h[child] >= v {
			h[i] = v
			break
		}
		h[i] = h[child]
		i = child
	}
	*q = h
	return top
}
