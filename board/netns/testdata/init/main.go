// Command init is the smallest thing that can be switched on: it makes the
// networks of a handset, tells what it sees, and waits. As /bin/rempart it
// tells what the phone's user sees. It is for the board's own tests.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// sight is what a process of a machine can see of the machine and the desk.
type sight struct {
	PID, UID, GID int
	Args, Env     []string
	Descriptors   map[string]string
	Mounts        string
	Root, Dev     []string
	Cgroup        string
	CgroupRoot    string // fourth field of the cgroup2 mount
	Host          string
	CapEff        string
	NoNewPrivs    string
	WriteRoot     string // the error of a write to the root
	WriteImage    string
	Processes     []string
	Devices       []string
}

func names(dir string) (n []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		n = append(n, e.Name())
	}
	return n
}

func look() sight {
	s := sight{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(), Descriptors: map[string]string{}}
	for _, fd := range names("/proc/self/fd") {
		target, _ := os.Readlink("/proc/self/fd/" + fd)
		s.Descriptors[fd] = target
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	s.Mounts = string(mounts)
	for line := range strings.Lines(s.Mounts) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			s.CgroupRoot = f[3]
		}
	}
	s.Root, s.Dev = names("/"), names("/dev")
	group, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(group)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			s.Cgroup = strings.TrimSpace(path)
		}
	}
	s.Host, _ = os.Hostname()
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			s.CapEff = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "NoNewPrivs:"); ok {
			s.NoNewPrivs = strings.TrimSpace(v)
		}
	}
	s.WriteRoot = fmt.Sprint(os.WriteFile("/probe", nil, 0o600))
	s.WriteImage = fmt.Sprint(os.Chmod("/etc/rempart/policy", 0o600))
	all, _ := filepath.Glob("/proc/[0-9]*")
	s.Processes = all
	devices, _ := link.List()
	for _, d := range devices {
		s.Devices = append(s.Devices, fmt.Sprintf("%s up=%v %s", d.Name, d.Up, d.MAC))
	}
	return s
}

func main() {
	if filepath.Base(os.Args[0]) == "rempart" {
		if len(os.Args) > 1 && os.Args[1] == "fail" {
			fmt.Fprintln(os.Stderr, "as asked")
			os.Exit(7)
		}
		_ = json.NewEncoder(os.Stdout).Encode(look())
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

// run is the boot of the smallest handset.
func run() error {
	first := look()
	if _, err := os.Stat("/state/refuse"); err == nil {
		return errors.New("refused as asked")
	}
	for _, dir := range []string{"init", "shell", "apps/notes", "apps/browser"} {
		if err := os.MkdirAll("/sys/fs/cgroup/"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/init/cgroup.procs", []byte("0"), 0); err != nil {
		return err
	}
	red, err := link.Create("/run/netns/red")
	if err != nil {
		return err
	}
	black, err := link.Create("/run/netns/black")
	if err != nil {
		return err
	}
	for _, a := range os.Args[1:] {
		if radio, ok := strings.CutPrefix(a, "radio="); ok {
			if err := link.MoveTo("wwan0", black); err != nil {
				return err
			}
			if err := black.Do(func() error { return configure(strings.Split(radio, ",")) }); err != nil {
				return err
			}
		}
	}
	if err := red.Do(func() error { return link.SetUp("lo") }); err != nil {
		return err
	}
	if err := pin("/sys/fs/bpf/gate"); err != nil {
		return err
	}
	told, err := json.Marshal(first)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/state/.sight", told, 0o600); err != nil {
		return err
	}
	if err := os.Rename("/state/.sight", "/state/sight"); err != nil {
		return err
	}
	fmt.Println("init: ready")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	<-stop
	fmt.Println("init: bye")
	return os.WriteFile("/state/bye", nil, 0o600)
}
