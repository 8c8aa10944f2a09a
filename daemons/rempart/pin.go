package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
	"rempart/internal/secret"
	"rempart/keystore/client"
)

// readPIN takes one line from a file or from stdin; a terminal does not show it.
// The buffer is the caller's to wipe.
func readPIN(e env, file string) (*secret.Bytes, error) {
	from := e.stdin
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the PIN: %w", err)
		}
		defer f.Close()
		from = f
	}
	if t, ok := from.(*os.File); ok {
		show, err := hide(t)
		if err != nil {
			return nil, err
		}
		if show != nil {
			fmt.Fprint(e.stderr, "PIN: ")
			defer fmt.Fprintln(e.stderr)
			defer show()
		}
	}
	// Enough for the longest PIN and its line end, and no more is kept in memory.
	r := bufio.NewReaderSize(io.LimitReader(from, client.MaxPIN+2), 128)
	line, err := r.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the PIN: %w", err)
	}
	end := len(line)
	for end > 0 && (line[end-1] == '\n' || line[end-1] == '\r') {
		end--
	}
	pin := append(make([]byte, 0, client.MaxPIN+2), line[:end]...)
	clear(line)
	if err := client.PIN(pin).Check(); err != nil {
		clear(pin)
		return nil, run.Hint(fmt.Errorf("cannot use the PIN: %w", err), "give it as one line on the standard input, or with --pin-file")
	}
	return secret.New(pin), nil
}

// hide turns a terminal's echo off and returns what turns it on again; nil for
// what is no terminal.
func hide(f *os.File) (show func(), err error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, nil // not a terminal: a pipe or a file
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, fmt.Errorf("cannot hide the PIN on this terminal: %w", err)
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, was) }, nil
}
