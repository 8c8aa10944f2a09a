package usurp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/internal/sandbox"
	"rempart/internal/wish"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// Sockets of the handset.
const (
	egressSocket = "/run/rempart/egressd.sock"
	initSocket   = "/run/rempart/init.sock"
)

// order is one try, as JSON.
type order struct {
	Row       Row
	Sandboxed bool // first put on tunneld's own filter
	Job       []string
	Inner     []netip.Addr // of other machines, for false wishes
	Admitted  string       // the gateway that is in the table
}

// result is what the program can say.
type result struct {
	Refused string `json:"refused"` // by what; empty when nothing refused it
	Sent    int    `json:"sent"`
	Granted string `json:"granted,omitempty"` // what a door did
}

// Attempt makes one try in the place of tunneld and prints its result.
func Attempt(ctx context.Context, text string, out io.Writer) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return fmt.Errorf("cannot read the order: %w", err)
	}
	job, err := attack.Parse(o.Job)
	if err != nil {
		return err
	}
	if o.Sandboxed {
		if err := sandbox.Enter(sandbox.Profile{Name: "tunneld"}); err != nil {
			return err
		}
	}
	var r result
	switch o.Row.Kind {
	case kindField:
		r = field(o.Row.field(), job)
	case kindChild:
		r = child(ctx, o)
	case kindTake:
		r = take(job)
	case kindAdmit, kindCommand:
		r = fool(ctx, o)
	case kindSelf:
		r.Refused = self("/proc/self")
	case kindWish:
		r = wishFor(ctx, o.Inner)
	default:
		var lines bytes.Buffer
		did, err := attack.Run(ctx, job, &lines)
		if err != nil {
			return err
		}
		r = result{Refused: did.Errno, Sent: did.Sent}
	}
	return json.NewEncoder(out).Encode(r)
}

// field is the last word of a row's name.
func (r Row) field() string { return r.Name[strings.LastIndex(r.Name, " ")+1:] }

// did adds an outcome to the result.
func (r *result) did(what string, err error) bool {
	if err == nil {
		return true
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		r.Refused = what + ": " + unix.ErrnoName(no)
	} else {
		r.Refused = what + ": " + err.Error()
	}
	return false
}

// child sends from a child's child: what is keyed to one process would miss it.
func child(ctx context.Context, o order) (r result) {
	o.Row.Kind, o.Sandboxed = string(attack.UDP), false
	if o.Row.To == "child" {
		o.Row.To = "host"
	} else {
		o.Row.Kind, o.Row.To = kindChild, "child" // once more
	}
	text, err := json.Marshal(o)
	if !r.did("marshal", err) {
		return r
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "usurp-attempt", string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	said, err := cmd.Output()
	if !r.did("start a child", err) {
		return r
	}
	r.did("read the child's result", json.Unmarshal(said, &r))
	return r
}

// take tries to use what other processes of the handset hold, and the other namespaces, and then sends.
func take(job attack.Job) (r result) {
	entries, err := os.ReadDir("/proc")
	r.did("list processes", err)
	for _, e := range entries {
		pid := 0
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid == os.Getpid() {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); r.did("pidfd_open", err) {
			for n := range 64 {
				got, err := unix.PidfdGetfd(fd, n, 0)
				if r.did("pidfd_getfd", err) {
					r.send(got, "a socket of another process", job)
					unix.Close(got)
				}
			}
			unix.Close(fd)
		}
		for _, ns := range []string{"net", "user"} {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if !r.did("open a namespace", err) {
				continue
			}
			if r.did("setns", unix.Setns(fd, 0)) {
				r.udp("in another namespace", job)
			}
			unix.Close(fd)
		}
	}
	for _, name := range []string{"red", "void"} {
		if fd, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0); r.did("open "+name, err) {
			if r.did("setns to "+name, unix.Setns(fd, unix.CLONE_NEWNET)) {
				r.udp("in "+name, job)
			}
			unix.Close(fd)
		}
	}
	return r
}

// udp sends an ordinary datagram.
func (r *result) udp(what string, job attack.Job) {
	domain := unix.AF_INET
	if job.Family == attack.IPv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if r.did("socket", err) {
		r.send(fd, what, job)
		unix.Close(fd)
	}
}

func (r *result) send(fd int, what string, job attack.Job) {
	if r.did("send: "+what, unix.Sendto(fd, job.Marker[:], unix.MSG_DONTWAIT, address(job.Target, job.Port))) {
		r.Sent++
	}
}

// fool asks egressd for what it must not do.
func fool(ctx context.Context, o order) (r result) {
	c, err := ask.Dial(egressSocket)
	if !r.did("reach egressd", err) {
		return r
	}
	defer c.Close()
	try := func(what string, do func() (egress.Status, error)) {
		s, err := do()
		switch {
		case r.did(what, err):
			r.Granted += what + "; "
		case s.Admitted != "" && s.Admitted != o.Admitted:
			r.Granted += what + " left " + s.Admitted + " in force; "
		}
	}
	if o.Row.Kind == kindAdmit {
		for _, name := range []string{"other", o.Admitted + "2", strings.ToUpper(o.Admitted), strings.Repeat("x", egress.MaxName)} {
			try("admit "+name, func() (egress.Status, error) { return c.Admit(ctx, name) })
		}
		return r
	}
	try("table", func() (egress.Status, error) { return c.Table(ctx, egress.DenyAll()) })
	for index := 1; index < 4; index++ {
		try(fmt.Sprint("attach ", index), func() (egress.Status, error) { return c.Attach(ctx, index) })
	}
	return r
}

// wishFor asks init for addresses that the certificate does not have.
func wishFor(ctx context.Context, inner []netip.Addr) (r result) {
	for _, a := range append(inner, netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:51::7")) {
		err := wish.Send(ctx, initSocket, []netip.Prefix{netip.PrefixFrom(a, a.BitLen())})
		var refused *wish.RefusedError
		if err == nil {
			r.Granted += a.String() + "; "
		} else if !errors.As(err, &refused) {
			r.Granted += a.String() + " was not answered: " + err.Error() + "; " // not known is not refused
		}
		r.did("wish for "+a.String(), err)
	}
	return r
}

// self is what a process is to the kernel: whom it runs as, what it may, in which namespaces and control group.
func self(dir string) string {
	var b strings.Builder
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(text)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
		}
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		link, err := os.Readlink(dir + "/ns/" + ns)
		if err != nil {
			link = err.Error()
		}
		b.WriteString(link + "\n")
	}
	return b.String()
}
