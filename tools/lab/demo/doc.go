// Package demo shows the product's promise once, from before power-on to after
// power-off, and keeps what it saw:
//
//	world     handsets and a gateway of its own, off; the capture of the internet's link begins
//	bring-up  boot, enrolment, PIN, tunnels
//	leak test every way out of a handset, and each again in a twin that leaks
//	call      recorded speech in both directions, measured from both ends
//	checks    what each handset says of itself, held against image and policy
//	power-off the capture ends; every frame in it is judged
//
// What the run showed is package report's Summary; this package only makes
// things happen in order and takes everything down again, however it ends.
package demo
