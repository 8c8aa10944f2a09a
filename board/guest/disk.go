package guest

import (
	"fmt"
	"io"
	"os"
)

// disk writes an initial RAM disk: a cpio archive in the format "newc"
// (kernel documentation, driver-api/early-userspace/buffer-format).
type disk struct {
	w     io.Writer
	inode int
	err   error
}

func (d *disk) folder(name string) { d.entry(name, 0o040755, nil) }

func (d *disk) file(name string, mode uint32, data []byte) { d.entry(name, 0o100000|mode, data) }

func (d *disk) copy(name string, mode uint32, from string) {
	data, err := os.ReadFile(from)
	if d.err == nil {
		d.err = err
	}
	d.file(name, mode, data)
}

func (d *disk) entry(name string, mode uint32, data []byte) {
	d.inode++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		d.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	d.write([]byte(head + name + "\x00"))
	d.pad(len(head) + len(name) + 1)
	d.write(data)
	d.pad(len(data))
}

func (d *disk) pad(n int) { d.write(make([]byte, -n&3)) }

func (d *disk) write(b []byte) {
	if d.err == nil {
		_, d.err = d.w.Write(b)
	}
}

// close writes the trailer and returns the first error.
func (d *disk) close() error {
	d.entry("TRAILER!!!", 0, nil)
	return d.err
}
