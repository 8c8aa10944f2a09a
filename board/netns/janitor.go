package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// janitorSpec is what the janitor is told.
type janitorSpec struct {
	World string
}

// The janitor's descriptors beyond the standard ones.
const (
	fdKeeper      = iota // the read end of a pipe whose write end the keeper holds
	fdJanitorLock        // the world's lock, shared with the keeper
)

// janitorMain waits for the end of the keeper, then removes what is left of
// the world. It holds the world's lock until it is done, so that nobody starts
// the world anew in between.
func janitorMain(text string) error {
	var spec janitorSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil || spec.World == "" {
		return errors.Join(errors.New("cannot be the janitor: no world named"), err)
	}
	// Whatever ends the keeper (a terminal, a shutdown) may reach this process
	// first: its work starts afterwards.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if _, err := io.Copy(io.Discard, inherited(fdKeeper, "keeper")); err != nil {
		return fmt.Errorf("cannot wait for the keeper: %w", err)
	}
	h, err := openHierarchy("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer h.close()
	if err := clean(h, spec.World); err != nil {
		return err
	}
	return removeLock(spec.World, inherited(fdJanitorLock, "lock"))
}

// lockPath names the file that is locked while a world exists.
func lockPath(world string) string { return runtimeDir(world) + ".lock" }

// errRunning means that a world's lock is held.
var errRunning = errors.New("it is running")

// lockWorld takes the lock of a world, or returns errRunning.
func lockWorld(world string) (*os.File, error) {
	for {
		if err := os.MkdirAll(runtimeTop, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w", runtimeTop, err)
		}
		f, err := os.OpenFile(lockPath(world), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // another world was the last one and took the folder along
		}
		if err != nil {
			return nil, fmt.Errorf("cannot lock world %s: %w", world, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close() // nothing was written
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errRunning
			}
			return nil, fmt.Errorf("cannot lock world %s: %w", world, err)
		}
		// The one before may have removed the file between open and lock.
		var held, named unix.Stat_t
		if unix.Fstat(int(f.Fd()), &held) == nil && unix.Stat(lockPath(world), &named) == nil && held.Ino == named.Ino {
			return f, nil
		}
		_ = f.Close() // a lock on a file without a name guards nothing
	}
}

// removeLock removes the lock's file while it is held, then lets go of it.
func removeLock(world string, f *os.File) error {
	err := os.Remove(lockPath(world))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	_ = unix.Rmdir(runtimeTop) // goes with the last world, and is not empty before
	return errors.Join(err, f.Close())
}
