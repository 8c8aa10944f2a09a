package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/tools/lab/leak"
)

// uidUser is the person who holds the phone.
const uidUser = 1000

// crowdCommand is the sender of the leak matrix: hidden, started in a handset's network with its jobs on standard input.
func crowdCommand() command {
	return command{name: "crowd", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		f := flag.NewFlagSet("crowd", flag.ContinueOnError)
		width := f.Int("width", 4, "")
		behind := f.String("behind", "", "")
		if err := f.Parse(args); err != nil {
			return err
		}
		if *behind != "" {
			return crowdBehind(*behind, *width, s)
		}
		jobs, err := attack.ReadJobs(s.in)
		if err != nil {
			return err
		}
		return attack.Crowd(ctx, jobs, *width, s.out, attemptProcess)
	}}
}

// swapCommand admits and closes, again and again: hidden, run in tunneld's place.
func swapCommand() command {
	return command{name: "swap", hidden: true, run: func(ctx context.Context, args []string, _ streams) error {
		if len(args) != 2 {
			return errors.New("swap takes a number and a gateway")
		}
		times, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return leak.Swap(ctx, times, args[1])
	}}
}

// attemptProcess is this program again, as the job's user and with the descriptor that it was handed.
func attemptProcess(j attack.Job) *exec.Cmd {
	// By this name it is found also where the user may not look.
	cmd := exec.Command("/proc/self/exe", append([]string{"attempt"}, j.Args()...)...)
	if j.User {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uidUser, Gid: uidUser}}
	}
	if j.FD != 0 {
		// The copy in this process stays open: every job of the crowd has the same.
		fd, err := unix.FcntlInt(uintptr(j.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "passed")}
		}
	}
	return cmd
}

// crowdBehind makes a namespace behind this one and becomes the crowd in it. If the handset does not let it, that is the result
// of every job.
func crowdBehind(device string, width int, s streams) error {
	runtime.LockOSThread() // exec keeps the namespaces of the calling thread
	if err := attack.EnterBehind(device); err != nil {
		jobs, rerr := attack.ReadJobs(s.in)
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		enc := json.NewEncoder(s.out)
		for _, l := range attack.RefuseAll(jobs, err) {
			if err := enc.Encode(l); err != nil {
				return err
			}
		}
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(self, []string{"rempart-lab", "crowd", "-width", strconv.Itoa(width)}, os.Environ())
}
