package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
	"rempart/internal/sandbox"
)

// uidUser is the person who holds the phone; uidApps is the first app's, in the order of their names.
const (
	uidUser = 1000
	uidApps = 2000
)

// enterSpec says where a process goes.
type enterSpec struct {
	PID   int    // the machine's init
	Netns string // path of a network namespace
	Group string // control group relative to the root of the machine's, "desk" or "apps/NAME"
	UID   uint32 // of an app; 0 for a command of the desk, which stays root
}

// openAll opens namespace files and returns their descriptors.
func openAll(paths ...string) ([]int, error) {
	fds := make([]int, len(paths))
	for i, path := range paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open %s: %w", path, err)
		}
		fds[i] = fd // close-on-exec, and exec or exit follows
	}
	return fds, nil
}

// joinGroup moves this process into a control group of a machine, by the
// machine's own mount.
func joinGroup(pid int, group string) error {
	path := procPath(pid, filepath.Join("root/sys/fs/cgroup", group, "cgroup.procs"))
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		return fmt.Errorf("cannot join control group /%s: %w", group, err)
	}
	return nil
}

// enterMain puts this process into a machine's network, UTS and IPC
// namespaces and control group and becomes the command. The command sees the
// desk's file system, with a /sys that shows the network it is in, and the
// desk's processes. No right is added, and none taken but from an app.
func enterMain(text string, command []string) error {
	runtime.LockOSThread() // exec keeps the namespaces of the calling thread
	var spec enterSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil || len(command) == 0 {
		return errors.Join(errors.New("cannot enter: no command"), err)
	}
	// Found before anything changes: PATH and the folder are the desk's.
	program, err := exec.LookPath(command[0])
	if err != nil {
		return run.Hint(fmt.Errorf("cannot run %s: %w", command[0], err), "exec runs commands of this machine, not of the handset")
	}
	ns, err := openAll(spec.Netns, procPath(spec.PID, "ns/uts"), procPath(spec.PID, "ns/ipc"))
	if err != nil {
		return err
	}
	for i, kind := range []int{unix.CLONE_NEWNET, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC} {
		if err := unix.Setns(ns[i], kind); err != nil {
			return fmt.Errorf("cannot enter the machine: %w", err)
		}
	}
	if err := freshSys(); err != nil {
		return err
	}
	// Last: from here on the machine's rules for its own processes hold.
	if err := joinGroup(spec.PID, spec.Group); err != nil {
		return err
	}
	if spec.UID != 0 {
		if err := sandbox.BecomeApp(spec.UID); err != nil {
			return err
		}
	}
	return fmt.Errorf("cannot run %s: %w", program, unix.Exec(program, command, os.Environ()))
}

// freshSys gives the calling thread a mount namespace in which /sys shows the
// devices of its network namespace. What the desk has mounted below /sys stays.
func freshSys() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	type tree struct {
		path string
		fd   int
	}
	var kept []tree
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot read the mounts: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], "/sys/") {
			continue
		}
		if n := len(kept); n > 0 && strings.HasPrefix(fields[4], kept[n-1].path+"/") {
			continue // comes along with the one above it
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, fields[4], unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			continue // hidden by a later mount
		}
		kept = append(kept, tree{fields[4], fd})
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, t := range kept {
		// A folder that this kernel makes only for a namespace that has it
		// stays unmounted.
		_ = unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	return nil
}

// allKinds are the kinds of namespaces that a machine has of its own, and namespaces the files of a process's, in that order:
// the mounts last, since the desk's files are gone then.
var allKinds = []int{unix.CLONE_NEWCGROUP, unix.CLONE_NEWNET, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWPID, unix.CLONE_NEWNS}

func namespaces(pid int) (paths []string) {
	for _, name := range []string{"cgroup", "net", "uts", "ipc", "pid", "mnt"} {
		paths = append(paths, procPath(pid, "ns/"+name))
	}
	return paths
}

// userMain runs a command of the machine as its user would: in all its
// namespaces, in control group /shell, as an unprivileged user.
func userMain(text string, command []string) error {
	runtime.LockOSThread() // the child is born in the namespaces of this thread
	var spec enterSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil || len(command) == 0 {
		return errors.Join(errors.New("cannot enter: no command"), err)
	}
	ns, err := openAll(append(namespaces(spec.PID), procPath(spec.PID, filepath.Join("root/sys/fs/cgroup", spec.Group)))...)
	if err != nil {
		return err
	}
	// A thread that shares its root and folder with others can't change both.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot enter the machine: %w", err)
	}
	for i, kind := range allKinds {
		if err := unix.Setns(ns[i], kind); err != nil {
			return fmt.Errorf("cannot enter the machine: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot give up privileges: %w", err)
	}
	cmd := &exec.Cmd{
		Path: command[0], Args: command, Dir: "/", Env: []string{"PATH=/bin", "HOME=/", "USER=user"},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &unix.SysProcAttr{
			UseCgroupFD: true, CgroupFD: ns[6],
			Credential: &syscall.Credential{Uid: uidUser, Gid: uidUser},
		},
	}
	return follow(cmd)
}

// follow runs a command that is inside a machine, passes the signals of a terminal on, and ends as it ends.
func follow(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot run %s in the machine: %w", cmd.Args[0], err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			os.Exit(128 + int(status.Signal()))
		}
		os.Exit(exit.ExitCode())
	}
	return err
}
