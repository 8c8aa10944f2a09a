package attack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Supervise makes the attempt in a process of its own and writes that process's result lines to out. A handset may answer an
// attempt with a kill: then the result is the errno "SIGKILL", and a kind that has other ways left goes on with those.
//
// command returns the not yet started process that runs the job; it must pass the standard output of Run through. Cancelling
// ctx sends it SIGTERM, the normal end of the kinds that go on.
func Supervise(ctx context.Context, j Job, out io.Writer, command func(Job) *exec.Cmd) error {
	killed, told, err := supervise(ctx, j, out, command)
	if err != nil || !killed {
		return err
	}
	more := (j.Kind == Constant || j.Kind == Hotplug) && !j.NoPacket && ctx.Err() == nil
	if more {
		j.NoPacket = true
		if killed, told, err = supervise(ctx, j, out, command); err != nil {
			return err
		}
	}
	if killed && !told {
		return writeLine(out, Result{Kind: j.Kind, Family: j.Family, Errno: "SIGKILL", Note: "the sender was killed at the attempt"})
	}
	return nil
}

// supervise runs one process to its end; told says whether it gave a final result.
func supervise(ctx context.Context, j Job, out io.Writer, command func(Job) *exec.Cmd) (killed, told bool, err error) {
	cmd := command(j)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return false, false, err
	}
	if err := cmd.Start(); err != nil {
		return false, false, fmt.Errorf("cannot start the attempt: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		// It may have ended by itself.
		_ = cmd.Process.Signal(unix.SIGTERM)
	})
	defer stop()
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		r, err := ParseResult(lines.Bytes())
		if err != nil {
			return false, false, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		told = told || !r.Started
		if err := writeLine(out, r); err != nil {
			return false, false, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() && w.Signal() == unix.SIGKILL {
			return true, told, nil
		}
	}
	return false, told, err
}
