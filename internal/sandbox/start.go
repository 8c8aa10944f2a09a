package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rempart/internal/sock"
)

// Spec is everything that a started daemon has; what is not named here it does not have.
type Spec struct {
	Path         string
	Args         []string // after the program name
	UID          uint32   // uid and gid, no further groups
	Capabilities []int    // unix.CAP_*, kept over the change of uid as ambient
	NetNS        int      // descriptor of its network namespace
	Cgroup       *os.File // cgroup2 folder; the process is born in it, so no socket is ever of another cgroup
	Files        []Handed // inherited from descriptor 3 on
	Stderr       *os.File // journal; nil for /dev/null
}

// Handed is a descriptor to hand over under a name (sock.Inherited).
type Handed struct {
	Name string
	File *os.File
}

// lastCap bounds the search for the kernel's last capability (41 in Linux 6.18).
const lastCap = 63

// Start begins the program of s in its own session with an empty environment but for sock.EnvFDs. The bounding set,
// no_new_privs and the network namespace are properties of the starting thread, which is thrown away.
func Start(s Spec) (*os.Process, error) {
	type result struct {
		p   *os.Process
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, and its changed credentials with it.
		runtime.LockOSThread()
		p, err := start(s)
		done <- result{p, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", s.Path, r.err)
	}
	return r.p, nil
}

func start(s Spec) (*os.Process, error) {
	if s.UID == 0 {
		return nil, errors.New("a daemon never runs as root")
	}
	if s.NetNS <= 2 || s.Cgroup == nil {
		return nil, errors.New("its network namespace or cgroup is not named")
	}
	cmd := exec.Command(s.Path, s.Args...)
	var names []string
	for _, h := range s.Files {
		names = append(names, h.Name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, h.File)
	}
	cmd.Env = []string{sock.EnvFDs + "=" + strings.Join(names, ":"), "GOTRACEBACK=single", "DAEMON=" + filepath.Base(s.Path)}
	cmd.Dir = "/"
	if s.Stderr != nil {
		cmd.Stdout, cmd.Stderr = s.Stderr, s.Stderr
	}
	var ambient []uintptr
	for _, c := range s.Capabilities {
		ambient = append(ambient, uintptr(c))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: s.UID, Gid: s.UID, Groups: []uint32{}},
		AmbientCaps: ambient,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(s.Cgroup.Fd()),
	}
	if err := unix.Setns(s.NetNS, unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("its network namespace: %w", err)
	}
	if err := dropBounding(s.Capabilities); err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("no_new_privs: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd.Process, nil
}

// dropBounding takes every capability but keep out of the calling thread's bounding set.
func dropBounding(keep []int) error {
	for c := range lastCap + 1 {
		if slices.Contains(keep, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return nil
}
