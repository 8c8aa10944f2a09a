// Package sound measures what a call did to speech: it reads and prepares WAV
// files, finds where the received recording lies in the sent one, and from that
// the one-way latency, the gaps and how much of the signal came through.
//
// The figures are honest and simple. They are signal-to-noise ratios, not an
// opinion score: this package is neither PESQ (ITU-T P.862) nor POLQA (P.863)
// and its figures must not be called by these names. They compare runs of the
// same speech over the same codec; they do not rate a codec.
//
// Everything is pure: readers in, numbers out.
package sound
