package sound

import (
	"math"
	"math/bits"
	"math/cmplx"
)

// fft transforms x in place; len(x) must be a power of two. The inverse is not
// scaled.
func fft(x []complex128, inverse bool) {
	n := len(x)
	shift := 64 - bits.Len64(uint64(n-1))
	for i := range x {
		if j := int(bits.Reverse64(uint64(i)) >> shift); n > 1 && j > i {
			x[i], x[j] = x[j], x[i]
		}
	}
	sign := -2 * math.Pi
	if inverse {
		sign = -sign
	}
	turn := make([]complex128, n/2)
	for i := range turn {
		turn[i] = cmplx.Rect(1, sign*float64(i)/float64(n))
	}
	for size := 2; size <= n; size *= 2 {
		half, stride := size/2, n/size
		for start := 0; start < n; start += size {
			for k := range half {
				a, b := x[start+k], x[start+k+half]*turn[k*stride]
				x[start+k], x[start+k+half] = a+b, a-b
			}
		}
	}
}

// pow2 is the smallest power of two that is at least n.
func pow2(n int) int { return 1 << bits.Len(uint(max(n, 1)-1)) }

// correlate returns sum over i of a[i]*b[i+lag] for lags -len(a)+1 … len(b)-1,
// index 0 holding the first.
func correlate(a, b []float64) []float64 {
	n := pow2(len(a) + len(b))
	// Two real signals in one complex transform: half the work.
	z := make([]complex128, n)
	for i, v := range a {
		z[i] = complex(v, 0)
	}
	for i, v := range b {
		z[i] += complex(0, v)
	}
	fft(z, false)
	c := make([]complex128, n)
	for k := range z {
		zk, zr := z[k], cmplx.Conj(z[(n-k)%n])
		fa, fb := (zk+zr)/2, (zk-zr)/complex(0, 2)
		c[k] = cmplx.Conj(fa) * fb
	}
	fft(c, true)
	out := make([]float64, len(a)+len(b)-1)
	for i := range out {
		lag := i - len(a) + 1
		out[i] = real(c[(lag+n)%n]) / float64(n)
	}
	return out
}
