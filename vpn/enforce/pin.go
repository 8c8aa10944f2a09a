package enforce

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pinObject pins a map, program or link at path. It is BPF_OBJ_PIN alone: the
// library's Pin first asks statfs, a system call that egressd's sandbox refuses.
// The kernel itself refuses a path that is not on a bpffs.
func pinObject(object any, path string) error {
	o, ok := object.(interface{ FD() int })
	if !ok {
		return fmt.Errorf("cannot pin %s: %T has no descriptor", path, object)
	}
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return fmt.Errorf("cannot pin %q: %w", path, err)
	}
	// The head of union bpf_attr for BPF_OBJ_PIN; a shorter attr is zero-filled.
	attr := struct {
		pathname uint64
		fd       uint32
		flags    uint32
	}{uint64(uintptr(unsafe.Pointer(name))), uint32(o.FD()), 0}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_PIN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(name)
	runtime.KeepAlive(object)
	if errno != 0 {
		return fmt.Errorf("cannot pin %s: %w", path, errno)
	}
	return nil
}
