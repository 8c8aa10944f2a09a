package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// runtimeTop is the folder of all running worlds.
const runtimeTop = "/run/rempart-lab"

// The groups of a world beside its machines'.
const (
	groupKeeper  = "keeper"
	groupJanitor = "janitor"
)

func runtimeDir(world string) string { return filepath.Join(runtimeTop, world) }

// pinsOf opens the BPF file system of the handset whose control group is hs,
// or returns nil where there is none. While it is open, what is pinned there
// stays in force.
func pinsOf(hs string) *os.File {
	for _, pid := range members(hs) {
		if firstOfItsNamespace(pid) {
			return openPins(pid)
		}
	}
	return nil
}

// openPins opens the BPF file system of the machine whose init is pid.
func openPins(pid int) *os.File {
	path := procPath(pid, "root/sys/fs/bpf")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), path)
}

// firstOfItsNamespace tells whether pid is PID 1 of a nested PID namespace.
func firstOfItsNamespace(pid int) bool {
	status, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			ids := strings.Fields(string(rest))
			return len(ids) > 1 && ids[len(ids)-1] == "1"
		}
	}
	return false
}

// cut ends everything in a machine's control group: the handset first, with
// its pins held until nothing is left that could send, then its hardware.
func cut(group string, pins *os.File) error {
	hs := filepath.Join(group, "hs")
	if pins == nil {
		pins = pinsOf(hs)
	}
	err := killGroup(hs)
	if pins != nil {
		_ = pins.Close() // only a reference
	}
	return errors.Join(err, killGroup(group))
}

// clean removes all of a world that runs: processes, and with them their
// namespaces, mounts, devices and pins; control groups; the runtime folder.
// Namespaces have no other holder, since none is bound to a path. The calling
// process is spared.
func clean(h *hierarchy, world string) error {
	group := h.path(world)
	entries, err := os.ReadDir(group)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot look for what is left of world %s: %w", world, err)
	}
	self := os.Getpid()
	if inGroup(self, group) {
		// Its own group has to go too. The root takes anyone in.
		if err := os.WriteFile(filepath.Join(h.root, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("cannot leave world %s: %w", world, err)
		}
	}
	errs := make([]error, len(entries))
	var wait sync.WaitGroup
	for i, e := range entries {
		if e.IsDir() {
			wait.Go(func() { errs[i] = cut(filepath.Join(group, e.Name()), nil) })
		}
	}
	wait.Wait()
	err = errors.Join(errs...)
	if err == nil {
		err = removeGroup(group)
	}
	_ = unix.Rmdir(h.path("")) // goes with its last world, and is busy before
	if rm := os.RemoveAll(runtimeDir(world)); rm != nil {
		err = errors.Join(err, fmt.Errorf("cannot remove the runtime folder of world %s: %w", world, rm))
	}
	return err
}

// inGroup tells whether pid is in a control group or below.
func inGroup(pid int, dir string) bool {
	for _, p := range members(dir) {
		if p == pid {
			return true
		}
	}
	return false
}
