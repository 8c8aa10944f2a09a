// Package audio holds the sound devices of a board as values that voice/media can use: here WAV files that behave like a
// microphone and a speaker.
//
// A WAV microphone and a WAV speaker are paced in real time by CLOCK_MONOTONIC, on a timeline that is counted in samples and
// never drifts; both write into a Stamps file when their first sample was read and played, so that a program outside the
// handset can measure one-way latency. They know one format, the one of voice/codec: 48 kHz, mono, 16-bit PCM.
package audio
