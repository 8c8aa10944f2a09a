// Package watch is the stranger on the internet link: it reads a capture taken
// outside every handset, says of each frame which admitted class of the signed
// policy it belongs to, and finds the random markers that attempts carry.
//
// There is no capture filter and no default pass: a frame that no class of the
// policy admits is Outside, whoever sent it, and one marker in any frame, of
// any class, is a leak. The reader is strict, bounded and streaming: a live
// capture is watched while it grows, block by block, and a capture that is cut
// off, is of another link type or holds a block this package does not know is
// an error, never a short list of frames.
//
// The package opens no file and no socket; it is handed readers.
package watch
