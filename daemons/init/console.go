package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
)

// maxJournal bounds the journal of one boot, in bytes; the older half is kept beside it as ….1.
const maxJournal = 2 << 20

// maxLine bounds one line of a daemon, in bytes; the rest of a longer one is a line of its own.
const maxLine = 4 << 10

// console is where every daemon's words go: the serial console and the journal file.
type console struct {
	mu     sync.Mutex
	serial io.Writer
	path   string
	file   *os.File
	size   int
}

func openConsole(serial io.Writer, path string) (*console, error) {
	c := &console{serial: serial, path: path}
	return c, c.reopen()
}

func (c *console) reopen() error {
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	// Only the shell user and root read it.
	if err := f.Chown(0, uidShell); err != nil && !errors.Is(err, fs.ErrPermission) {
		return errors.Join(err, f.Close())
	}
	c.file, c.size = f, 0
	return nil
}

// Write writes whole lines to both. A full or failing journal file never stops the console, nor the other way round.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.size+len(b) > maxJournal {
		err = errors.Join(c.file.Close(), os.Rename(c.path, c.path+".1"), c.reopen())
	}
	n, werr := c.file.Write(b)
	c.size += n
	_, serr := c.serial.Write(b)
	return len(b), errors.Join(err, werr, serr)
}

// collect copies a daemon's output line by line until its last holder has closed it.
func (c *console) collect(name string, r io.ReadCloser) {
	defer r.Close()
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			out := append([]byte(nil), line...)
			if out[len(out)-1] != '\n' {
				out = append(out, '\n')
			}
			// A journal line and package run's error line name the daemon themselves. A line that names another is
			// not what it looks like: nobody's event is told by anyone else.
			if !journalled(out, name) && !bytes.HasPrefix(out, []byte(name+": ")) {
				out = append([]byte(name+": "), out...)
			}
			// An error is for nobody: this is where errors go.
			c.Write(out)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// journalled tells whether a line is package journal's, of that very daemon: time, mono, then whose it is.
func journalled(line []byte, name string) bool {
	f := bytes.SplitN(line, []byte(" "), 4)
	return len(f) == 4 && bytes.HasPrefix(f[0], []byte("time=")) && bytes.HasPrefix(f[1], []byte("mono=")) && string(f[2]) == "daemon="+name
}
