package attack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// respawn is how long an attempt that was killed waits for its next life: a crowd of them must leave the machine to the handset.
const respawn = time.Second

// Supervise makes the attempt in a process of its own and writes that process's result lines to out. A handset may answer an
// attempt with a kill: then the result is the errno "SIGKILL". An attempt that goes on does so after a kill: by the ways that are
// left where it has several, in a new process where it has one.
//
// command returns the not yet started process that runs the job; it must pass the standard output of Run through. Cancelling
// ctx sends it SIGTERM, the normal end of an attempt that goes on.
func Supervise(ctx context.Context, j Job, out io.Writer, command func(Job) *exec.Cmd) error {
	end := time.Now().Add(j.For)
	several := j.Kind == Constant || j.Kind == Hotplug
	for lives := 0; ; lives++ {
		killed, told, err := supervise(ctx, j, out, command)
		if err != nil || !killed {
			return err
		}
		switch {
		case ctx.Err() == nil && several && !j.NoPacket:
			j.NoPacket = true
			continue
		case ctx.Err() == nil && !several && time.Now().Before(end):
			if lives == 0 && !told {
				// Whoever waits for the start may go on.
				if err := writeLine(out, Result{Kind: j.Kind, Family: j.Family, Started: true}); err != nil {
					return err
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(respawn):
				continue
			}
		}
		if told {
			return nil
		}
		return writeLine(out, Result{Kind: j.Kind, Family: j.Family, Errno: "SIGKILL", Note: "the sender was killed at the attempt"})
	}
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
		// One that is told to stop before it listens ends by that.
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() && (w.Signal() == unix.SIGKILL || w.Signal() == unix.SIGTERM && ctx.Err() != nil) {
			return true, told, nil
		}
	}
	return false, told, err
}
