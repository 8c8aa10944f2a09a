// Package sock is how our processes reach one another: inherited descriptors, unix sockets, and who is at the other end.
//
// Listening sockets are made by init and inherited, so that a daemon needs no right to create one, a restart refuses no
// caller, and a path cannot be taken over. A caller is told by its uid and its cgroup, both read from the kernel.
package sock

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// EnvFDs names the inherited descriptors, separated by colons: the first is descriptor 3, the second 4, and so on.
const EnvFDs = "REMPART_FDS"

// ErrOutside is returned for a peer that is not a process of this handset.
var ErrOutside = errors.New("peer is outside the handset")

// Peer is the process at the other end of a unix socket at the moment it connected.
type Peer struct {
	PID    int
	UID    uint32
	Cgroup string // path inside the handset's cgroup namespace, for example "/voiced"
}

func (p Peer) String() string { return fmt.Sprintf("uid %d in %s", p.UID, p.Cgroup) }

// Is tells whether the peer is uid in exactly that cgroup.
func (p Peer) Is(uid uint32, cgroup string) bool { return p.UID == uid && p.Cgroup == cgroup }

// Inherited returns the descriptor that was handed over under name, close-on-exec. It can be taken once.
func Inherited(name string) (*os.File, error) {
	names := strings.Split(os.Getenv(EnvFDs), ":")
	i := slices.Index(names, name)
	if i < 0 || name == "" {
		return nil, fmt.Errorf("cannot take descriptor %q: it was not handed over in %s", name, EnvFDs)
	}
	fd := 3 + i
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("cannot take descriptor %q (%d): %w", name, fd, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// Listener returns the listening unix socket that was handed over under name.
func Listener(name string) (*net.UnixListener, error) {
	f, err := Inherited(name)
	if err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("cannot listen on descriptor %q: %w", name, err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("cannot listen on descriptor %q: it is a %s socket", name, ln.Addr().Network()), ln.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// PeerOf asks the kernel who connected. The uid is the one at connect time (SO_PEERCRED). The cgroup is read through /proc
// while a pidfd of the peer is held (SO_PEERPIDFD, Linux 6.5; before that pidfd_open), and only counts if the process is still
// alive afterwards, so a reused pid cannot lend its cgroup. A process that our pid namespace does not hold is ErrOutside.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("cannot tell the peer: %w", err)
	}
	var cred *unix.Ucred
	pidfd := -1
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		if cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); cerr != nil || cred.Pid <= 0 {
			return
		}
		if pidfd, cerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); cerr != nil {
			pidfd, cerr = unix.PidfdOpen(int(cred.Pid), 0)
		}
	}); err != nil {
		return Peer{}, fmt.Errorf("cannot tell the peer: %w", err)
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if cerr != nil {
		return Peer{}, fmt.Errorf("cannot tell the peer: %w", cerr)
	}
	if cred.Pid <= 0 {
		return Peer{}, ErrOutside
	}
	cg, err := cgroupOf(int(cred.Pid))
	if err != nil {
		return Peer{}, fmt.Errorf("cannot tell the peer's cgroup: %w", err)
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return Peer{}, fmt.Errorf("cannot tell the peer: process %d has ended: %w", cred.Pid, err)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, Cgroup: cg}, nil
}

func cgroupOf(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(data) {
		if path, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::")); ok {
			if strings.HasPrefix(string(path), "/..") {
				return "", ErrOutside
			}
			return string(path), nil
		}
	}
	return "", errors.New("no cgroup2 line")
}

// AcceptLoop serves each connection of ln in a goroutine of its own until ln is closed; at most max at once, further callers
// wait in the backlog. An accept error that is not the end is retried after a pause, so that a shortage of descriptors does
// not end a daemon.
func AcceptLoop(ln *net.UnixListener, max int, serve func(*net.UnixConn)) error {
	slots := make(chan struct{}, max)
	for {
		slots <- struct{}{}
		c, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			<-slots
			continue
		}
		go func() {
			defer func() { <-slots }()
			serve(c)
		}()
	}
}
