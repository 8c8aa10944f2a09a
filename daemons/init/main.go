package main

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sock"
)

func main() {
	started := mono() // the first line: boot times count from here
	run.Main("init", func(ctx context.Context, j *journal.Journal) error {
		if os.Getpid() != 1 {
			return run.Hint(errors.New("cannot run: init is not process 1"), "it is started by the firmware, or by rempart-lab up")
		}
		// The runtime probes for pidfd support with a child of its own at first use; the reaper must not take that child.
		if _, err := os.FindProcess(1); err != nil {
			return err
		}
		tpm, err := sock.Inherited("tpm")
		if err != nil {
			return err
		}
		radios, err := parseCommandLine(os.Args[1:])
		if err != nil {
			return run.Hint(err, "the board gives init its radios as radio=DEVICE,V4/LEN,V6/LEN,VIA4,VIA6,VIAMAC, and later ones as modem=…")
		}
		err = runPhone(ctx, newPhone(started, j, tpm, radios))
		if errors.Is(err, errRestart) {
			// In a pid namespace this ends init with SIGHUP, by which the board knows a restart (pid_namespaces(7)).
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		return err
	})
}
