package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/atomicfile"
	"rempart/internal/run"
	"rempart/tools/sound"
)

// results are the files of a run, in the order in which a person wants them.
var results = [...]string{"report.html", "summary.json", "internet.pcapng", "sent-a.wav", "received-b.wav", "sent-b.wav", "received-a.wav"}

// needBytes is what a run needs on the disk: two images, TPMs, a twin, the
// capture.
const needBytes = 300 << 20

// prepare makes the folder and refuses one that cannot take the results.
// Those of an earlier run go: a run that fails must not be taken for it.
func prepare(out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return run.Hint(fmt.Errorf("cannot write to %s: %w", out, err), "--out names another folder")
	}
	probe, err := os.CreateTemp(out, ".probe-*")
	if err != nil {
		return run.Hint(fmt.Errorf("cannot write to %s: %w", out, errors.Unwrap(err)), "--out names another folder")
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("cannot write to %s: %w", out, err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(out, &disk); err != nil {
		return fmt.Errorf("cannot look at the disk of %s: %w", out, err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < needBytes {
		return run.Hint(fmt.Errorf("cannot run the demo in %s: the disk has %d MB left, it needs %d MB", out, free>>20, needBytes>>20),
			"make room, or --out names another folder")
	}
	return clear(out)
}

// clear removes the results of a run; TPMs, keys and images stay.
func clear(out string) error {
	var errs []error
	for _, name := range results {
		if err := os.Remove(filepath.Join(out, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot remove the results of an earlier run: %w", err))
		}
	}
	return errors.Join(errs...)
}

// recordings are real speech that Debian ships (package alsa-utils); each side
// has its own, so that nobody can be heard for the other.
var recordings = map[string][]string{
	"sent-a.wav": {"Front_Center.wav", "Front_Left.wav", "Front_Right.wav"},
	"sent-b.wav": {"Rear_Center.wav", "Rear_Left.wav", "Side_Right.wav"},
}

// recordingsDir is where they are.
const recordingsDir = "/usr/share/sounds/alsa"

// writeSpeech writes what both sides say.
func writeSpeech(out string) error {
	for to, names := range recordings {
		var clips []sound.Clip
		for _, name := range names {
			f, err := os.Open(filepath.Join(recordingsDir, name))
			if err != nil {
				return run.Hint(fmt.Errorf("cannot find recorded speech: %w", err), "`make setup` installs it (Debian package alsa-utils)")
			}
			c, err := sound.ReadWAV(f)
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("cannot use recorded speech %s: %w", name, err)
			}
			clips = append(clips, c)
		}
		speech, err := sound.Speech(clips, 250*time.Millisecond, talkSeconds*time.Second)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := sound.WriteWAV(&b, speech); err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(out, to), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
