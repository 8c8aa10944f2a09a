//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "rempart-lab: cannot run on %s: the board is made of Linux namespaces\nhint: use a Debian 12 or 13 machine\n", runtime.GOOS)
	os.Exit(1)
}
