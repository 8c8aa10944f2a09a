package usurp

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendRaw is sendto(2) with an address of bytes.
func sendRaw(fd int, data, to []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), 0,
		uintptr(unsafe.Pointer(&to[0])), uintptr(len(to)))
	runtime.KeepAlive(data)
	runtime.KeepAlive(to)
	if errno != 0 {
		return errno
	}
	return nil
}
