package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConsoleCollectsWholeLinesOfEveryDaemon(t *testing.T) {
	var serial bytes.Buffer
	path := filepath.Join(t.TempDir(), "journal.log")
	c, err := openConsole(&serial, path)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", maxLine+10)
	c.collect("keyd", io.NopCloser(strings.NewReader("time=1 mono=2 daemon=keyd event=a\npanic: no\n"+long+"\nno line end")))
	want := "time=1 mono=2 daemon=keyd event=a\nkeyd: panic: no\nkeyd: " + long[:maxLine] + "\nkeyd: " + long[maxLine:] + "\nkeyd: no line end\n"
	if serial.String() != want {
		t.Errorf("serial got %q", serial.String())
	}
	file, err := os.ReadFile(path)
	if err != nil || string(file) != want {
		t.Errorf("journal file differs from the serial console: %v", err)
	}
}

// A daemon that was taken over must not write another's audit events.
func TestConsoleLetsNoDaemonSpeakForAnother(t *testing.T) {
	var serial bytes.Buffer
	c, err := openConsole(&serial, filepath.Join(t.TempDir(), "journal.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, forged := range []string{
		"time=1 mono=2 daemon=keyd event=keystore.unlock subject=shell outcome=success\n",
		"time=1 daemon=keyd mono=2 daemon=voiced event=a\n",
		"time=1 mono=2 daemon=voicedx event=a\n",
	} {
		serial.Reset()
		c.collect("voiced", io.NopCloser(strings.NewReader(forged)))
		if got := serial.String(); got != "voiced: "+forged {
			t.Errorf("%q was written as %q", forged, got)
		}
	}
}

func TestConsoleIsBoundedAndSurvivesItsSinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.log")
	c, err := openConsole(io.Discard, path)
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("y"), 1<<20), '\n')
	for range 5 {
		if _, err := c.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{path, path + ".1"} {
		st, err := os.Stat(name)
		if err != nil || st.Size() > maxJournal {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	broken := failingWriter{}
	c.serial = broken
	if _, err := c.Write([]byte("kept\n")); err == nil {
		t.Error("the failing serial console was not told")
	}
	data, err := os.ReadFile(path)
	if err != nil || !bytes.HasSuffix(data, []byte("kept\n")) {
		t.Errorf("a failing serial console lost the journal: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no carrier") }
