package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// NS is an open network namespace. The namespace lives at least as long as
// the NS is open. An NS may be used by many goroutines at once.
type NS struct {
	f *os.File
}

// Create makes a new, empty network namespace (loopback only, down).
//
// With a path, the namespace is also bound there, as `ip netns` does under
// /run/netns: the file is created, it must not exist, and its folder is made
// if missing. Such a namespace outlives the NS until [Delete]. With path ""
// the namespace is anonymous and goes when its last user goes.
func Create(path string) (*NS, error) {
	if path != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("cannot make the folder of network namespace %s: %w", path, err)
		}
		target, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if err != nil {
			return nil, fmt.Errorf("cannot name network namespace %s: %w", path, err)
		}
		_ = target.Close() // an empty file opened for reading: nothing to lose
	}
	var ns *NS
	err := discard(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot make a network namespace: %w", err)
		}
		made, err := openNS("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		if path != "" {
			if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
				return errors.Join(fmt.Errorf("cannot bind network namespace at %s: %w", path, err), made.Close())
			}
		}
		ns = made
		return nil
	})
	if err != nil {
		if path != "" {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	return ns, nil
}

// Delete removes the name that [Create] bound at path. The namespace itself
// goes when its last process, descriptor and other name are gone.
func Delete(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot unbind network namespace %s: %w", path, err)
	}
	return os.Remove(path)
}

// Open opens the network namespace bound at path (also /proc/PID/ns/net, or
// /proc/PID/root/run/netns/NAME for a name in another mount namespace).
func Open(path string) (*NS, error) {
	return openNS(path)
}

// OpenPID opens the network namespace that process pid is in.
func OpenPID(pid int) (*NS, error) {
	return openNS("/proc/" + strconv.Itoa(pid) + "/ns/net")
}

// Self opens the network namespace of the calling thread. A goroutine that
// never locked its thread is in the namespace that the process started in.
func Self() (*NS, error) {
	return openNS("/proc/thread-self/ns/net")
}

// openNS opens a namespace file and makes sure that it is one of a network:
// setns would only say "invalid argument", much later.
func openNS(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open network namespace %s: %w", path, err)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		err = errors.New("it is a namespace of another kind")
	}
	if err != nil {
		_ = unix.Close(fd) // the first error is the one to tell
		return nil, fmt.Errorf("cannot use %s as a network namespace: %w", path, err)
	}
	return &NS{f: os.NewFile(uintptr(fd), path)}, nil
}

// FD returns the descriptor of the namespace. It stays the NS's own: valid
// until Close, close-on-exec.
func (ns *NS) FD() int {
	return int(ns.f.Fd())
}

// File returns the descriptor of the namespace to hand to another process. It
// stays the NS's own.
func (ns *NS) File() *os.File {
	return ns.f
}

// FromFile makes an NS of a descriptor that was handed over. The NS owns it.
func FromFile(f *os.File) (*NS, error) {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		err = errors.New("it is a namespace of another kind")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use %s as a network namespace: %w", f.Name(), err)
	}
	return &NS{f: f}, nil
}

// ID returns the inode number that names the namespace on this kernel, as in
// the "net:[4026531840]" of /proc/PID/ns/net.
func (ns *NS) ID() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		return 0, fmt.Errorf("cannot read the id of a network namespace: %w", err)
	}
	return st.Ino, nil
}

// Cookie returns the kernel's number for the namespace, which is never used twice and
// which BPF programs know it by (SO_NETNS_COOKIE, Linux 5.14).
func (ns *NS) Cookie() (cookie uint64, err error) {
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return errors.Join(err, unix.Close(fd))
	})
	if err != nil {
		return 0, fmt.Errorf("cannot ask for a network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// Close lets go of the namespace.
func (ns *NS) Close() error {
	return ns.f.Close()
}

// Do runs fn inside the namespace, on a thread of its own that is discarded
// afterwards, and returns fn's error. Sockets that fn opens stay in the
// namespace for ever; a process that fn starts is born in it. (A process
// started with SysProcAttr.Pdeathsig would get that signal when Do returns:
// the signal is tied to the thread.) Goroutines that fn starts run elsewhere.
func (ns *NS) Do(fn func() error) error {
	return discard(func() error {
		if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter network namespace %s: %w", ns.f.Name(), err)
		}
		return fn()
	})
}

// errExited is what Do returns when fn ended its goroutine (runtime.Goexit,
// which is what testing.T.FailNow does) in place of returning.
var errExited = errors.New("the work in the network namespace ended its goroutine")

// discard runs fn on a fresh goroutine locked to its thread. The goroutine
// ends without unlocking: the runtime then destroys the thread, whatever
// namespace it is in by then. The process's first thread is the exception
// (the runtime parks it for ever, and it would keep the namespace and show it
// as /proc/PID/ns/net), so a goroutine that lands there sends another while it
// occupies it.
func discard(fn func() error) error {
	done := make(chan error, 1)
	var work func()
	work = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			elsewhere := make(chan struct{})
			go func() { defer close(elsewhere); work() }()
			<-elsewhere
			return
		}
		err := errExited
		defer func() { done <- err }()
		err = fn()
	}
	go work()
	return <-done
}
