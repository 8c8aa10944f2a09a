package netns

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"rempart/internal/run"
)

// The hidden first arguments by which a program that uses this package
// becomes one of its processes.
const (
	stageKeeper   = "_keeper"
	stageJanitor  = "_janitor"
	stageFirmware = "_firmware"
	stageEnter    = "_enter"
	stageUser     = "_user"
	stagePlace    = "_place"
)

// Stage turns the calling program into the board's own process that its
// arguments name, and then does not return. For any other arguments it does
// nothing. It must be called first thing in main (and in TestMain).
func Stage() {
	if len(os.Args) < 3 {
		return
	}
	var err error
	switch os.Args[1] {
	case stageKeeper:
		err = keeperMain(os.Args[2])
	case stageJanitor:
		err = janitorMain(os.Args[2])
	case stageFirmware:
		err = firmwareMain(os.Args[2])
	case stageEnter:
		err = enterMain(os.Args[2], os.Args[3:])
	case stageUser:
		err = userMain(os.Args[2], os.Args[3:])
	case stagePlace:
		err = placeMain(os.Args[2], os.Args[3:])
	default:
		return
	}
	os.Exit(run.Report(os.Stderr, "rempart-lab", err))
}

// again returns the command that runs this program as a stage with a spec.
func again(stage string, spec any, args ...string) (*exec.Cmd, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot describe stage %s: %w", stage, err)
	}
	// /proc/self/exe is this very binary even if its file was replaced since.
	cmd := exec.Command("/proc/self/exe", append([]string{stage, string(text)}, args...)...)
	cmd.Args[0] = "rempart-lab"
	cmd.Env = os.Environ()
	return cmd, nil
}

// inherited returns descriptor 3+n as a file.
func inherited(n int, name string) *os.File {
	return os.NewFile(uintptr(3+n), name)
}

// procPath returns /proc/PID/….
func procPath(pid int, rest string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + rest
}
