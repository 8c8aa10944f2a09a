package enforce

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// talker is a process in a cgroup and a namespace that does one socket call per line.
type talker struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
	cmd *exec.Cmd
}

// talk starts a talker.
func talk(t *testing.T, ns *link.NS, cg string) *talker {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ENFORCE_CHILD=talk")
	dir, err := os.Open(cg)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	return &talker{t, in, bufio.NewScanner(out), cmd}
}

// do has the talker do one thing and returns "ok" or the name of the error.
func (k *talker) do(format string, args ...any) string {
	k.t.Helper()
	fmt.Fprintf(k.in, format+"\n", args...)
	if !k.out.Scan() {
		k.t.Fatalf("the talker ended at %q", fmt.Sprintf(format, args...))
	}
	return k.out.Text()
}

// must is do for what has to work.
func (k *talker) must(format string, args ...any) {
	k.t.Helper()
	if got := k.do(format, args...); got != "ok" {
		k.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

var kinds = map[string][3]int{
	"udp4": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, "udp6": {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	"tcp4": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, "tcp6": {unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	"raw4": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, "raw6": {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_UDP},
	"ping4": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "udplite": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
	"mptcp": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
	"unix":  {unix.AF_UNIX, unix.SOCK_DGRAM, 0}, "netlink": {unix.AF_NETLINK, unix.SOCK_RAW, 0},
}

func childTalk() {
	fd := -1
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch err := talkOne(&fd, word, rest); {
		case err == nil:
			fmt.Println("ok")
		default:
			var errno unix.Errno
			if errors.As(err, &errno) {
				fmt.Println(unix.ErrnoName(errno))
			} else {
				fmt.Println(err)
			}
		}
	}
	os.Exit(0)
}

func talkOne(fd *int, word, rest string) (err error) {
	switch word {
	case "socket":
		if *fd >= 0 {
			if err := unix.Close(*fd); err != nil {
				return err
			}
		}
		k := kinds[rest]
		if *fd, err = unix.Socket(k[0], k[1]|unix.SOCK_CLOEXEC, k[2]); err != nil {
			return err
		}
		if k[0] == unix.AF_UNIX || k[0] == unix.AF_NETLINK {
			return nil
		}
		wait := unix.NsecToTimeval(int64(300 * time.Millisecond))
		return errors.Join(unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait), unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	case "send":
		return unix.Sendto(*fd, []byte("rempart test"), unix.MSG_NOSIGNAL, nil)
	case "receive":
		_, _, err := unix.Recvfrom(*fd, make([]byte, 2000), 0)
		return err
	case "listen":
		return unix.Listen(*fd, 1)
	case "accept":
		c, _, err := unix.Accept(*fd)
		if err != nil {
			return err
		}
		_ = unix.Close(*fd)
		*fd = c
		return nil
	case "join":
		return os.WriteFile(filepath.Join(rest, "cgroup.procs"), []byte("0"), 0)
	case "patience":
		wait := unix.NsecToTimeval(int64(5 * time.Millisecond))
		return unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	case "mark":
		return unix.SetsockoptInt(*fd, unix.SOL_SOCKET, unix.SO_MARK, 0x52470001)
	}
	to, err := netip.ParseAddrPort(rest)
	if err != nil {
		return err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	switch word {
	case "bind":
		return unix.Bind(*fd, sa)
	case "connect":
		return unix.Connect(*fd, sa)
	case "sendto":
		return unix.Sendto(*fd, []byte("rempart test"), 0, sa)
	case "header": // a raw IPv4 datagram with a header of its own
		p := make([]byte, 28)
		p[0], p[3], p[8], p[9] = 0x45, 28, 64, unix.IPPROTO_UDP
		a := to.Addr().As4()
		copy(p[16:], a[:])
		return unix.Sendto(*fd, p, 0, &unix.SockaddrInet4{Addr: a})
	}
	return fmt.Errorf("what is %q", word)
}
