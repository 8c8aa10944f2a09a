// Package scenario holds the promises of the product as scripts that run on any
// board, watched from outside.
//
// The leak test is a table of rows. Each row is one way to get marked bytes out
// of a handset, and is run twice: on the handset as it is, where the marker must
// never be seen on the internet link, and on a throwaway twin from which every
// layer that stops the row was stripped, where the marker must be seen. A row
// whose twin does not leak is unproven and fails like a leak. Around every
// attempt the capture is settled: it must hold as many frames as the radios'
// own counters say have left, so no row depends on a sleep, and the lab sends
// no frame of its own that a stranger would have to be told to overlook.
//
// What sends is package attack, inside the handset; what judges is package
// watch, outside. This package only decides, and reaches the machine through
// the Board interface.
package scenario
