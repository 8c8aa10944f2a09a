//go:build !race

package gateway_test

// raceEnabled: the race detector slows everything down several times.
const raceEnabled = false
