package audio

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// SampleRate is the only sampling rate, in Hz.
	SampleRate = 48000
	// FrameSamples is the length of a frame in samples: 20 ms.
	FrameSamples = SampleRate / 50
	// Frame is the length of a frame in time.
	Frame = 20 * time.Millisecond
)

// A Clock returns nanoseconds that never go back, all from one epoch. Devices and sessions that share a call share a clock.
// Waiting is done with timers of package time, which on Linux run on CLOCK_MONOTONIC too.
type Clock func() int64

// Monotonic reads CLOCK_MONOTONIC, in nanoseconds since an epoch that all processes of one kernel share (the time stamps of a
// WAV device mean something to a process outside the handset).
func Monotonic() int64 {
	var ts unix.Timespec
	// clock_gettime cannot fail with this clock and a valid pointer (clock_gettime(2), ERRORS).
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// samples converts a duration in nanoseconds to whole samples, rounding down.
func samples(ns int64) int64 { return ns * SampleRate / int64(time.Second) }

// nanos converts a count of samples to nanoseconds, rounding down.
func nanos(n int64) int64 { return n * int64(time.Second) / SampleRate }
