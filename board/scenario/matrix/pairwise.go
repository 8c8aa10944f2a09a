package matrix

import (
	"container/heap"
	"math/rand/v2"
)

// pair is two values of two axes.
type pair struct {
	a, b   int
	va, vb string
}

// pairs returns the pairs of values that a row holds.
func (r Row) pairs() []pair {
	v := r.values()
	all := make([]pair, 0, axes*(axes-1)/2)
	for a := range v {
		for b := a + 1; b < len(v); b++ {
			all = append(all, pair{a, b, v[a], v[b]})
		}
	}
	return all
}

// Pairwise picks rows that together hold every pair of values that any of the
// rows holds, and so every value. The same seed picks the same rows. It takes,
// each time, a row that holds the most pairs still missing: not the smallest
// pick there is, but near it.
func Pairwise(rows []Row, seed uint64) []Row {
	number := map[pair]int{}
	q := &queue{}
	order := rand.New(rand.NewPCG(seed, 0)).Perm(len(rows))
	for i, r := range rows {
		var has []int
		for _, p := range r.pairs() {
			n, ok := number[p]
			if !ok {
				n = len(number)
				number[p] = n
			}
			has = append(has, n)
		}
		*q = append(*q, candidate{row: i, rank: order[i], pairs: has, gain: len(has)})
	}
	heap.Init(q)
	covered := make([]bool, len(number))
	chosen := make([]bool, len(rows))
	for left := len(number); left > 0; {
		// What a row gains only ever shrinks: the first whose count is still
		// right is the best.
		c := &(*q)[0]
		gain := 0
		for _, n := range c.pairs {
			if !covered[n] {
				gain++
			}
		}
		if gain < c.gain {
			c.gain = gain
			heap.Fix(q, 0)
			continue
		}
		for _, n := range c.pairs {
			covered[n] = true
		}
		left -= gain
		chosen[c.row] = true
		heap.Pop(q)
	}
	var picked []Row
	for i, r := range rows {
		if chosen[i] {
			picked = append(picked, r)
		}
	}
	return picked
}

// candidate is a row that may be picked.
type candidate struct {
	row, rank int
	pairs     []int
	gain      int
}

// queue is a heap: the most gain first, then the seed's order.
type queue []candidate

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if q[i].gain != q[j].gain {
		return q[i].gain > q[j].gain
	}
	return q[i].rank < q[j].rank
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(candidate)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
