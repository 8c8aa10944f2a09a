// Package talk makes one call between two handsets of a world and measures it
// from both ends: recordings on the microphones, the product's own `rempart
// call` in between, and what the speakers played held against what was spoken.
//
// It believes neither handset alone. Level and short authentication string are
// read on both sides and must be the same; latency comes from the moments at
// which a sample was read and played (CLOCK_MONOTONIC, one machine) and from
// the place at which the received recording holds the sent one.
package talk
