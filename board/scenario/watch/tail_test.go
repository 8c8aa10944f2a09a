package watch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTailFollowsAFileThatGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "internet.pcapng")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	w, _ := New(testRules())
	tail := NewTail(in)
	read := make(chan error, 1)
	go func() { read <- w.Read(context.Background(), tail) }()
	whole := capture(t, []string{"a"}, nil, shot{0, 0, tunnelFrame(t, host4, handset4, 9, secretMark[:])})
	// In pieces that end inside blocks, as a buffered writer leaves them.
	for _, b := range whole {
		if _, err := out.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.Await(ctx, 1); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		t.Fatalf("ended before it was told to: %v", err)
	case <-time.After(5 * tailPoll):
	}
	tail.Finish()
	tail.Finish()
	if err := <-read; err != nil || !w.Summary().Ended {
		t.Errorf("%v, ended %v", err, w.Summary().Ended)
	}
}

func TestTailReadsToTheEndAfterFinish(t *testing.T) {
	tail := NewTail(bytes.NewReader(make([]byte, 100_000)))
	tail.Finish()
	if b, err := io.ReadAll(tail); err != nil || len(b) != 100_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	broken := errors.New("broken")
	if _, err := NewTail(io.MultiReader(bytes.NewReader(nil), failing{broken})).Read(make([]byte, 1)); err != broken {
		t.Errorf("a broken file: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestTailOfACutCaptureIsAnError(t *testing.T) {
	whole := capture(t, []string{"a"}, nil, shot{0, 0, make([]byte, 60)})
	w, _ := New(testRules())
	tail := NewTail(bytes.NewReader(whole[:len(whole)-2]))
	tail.Finish()
	if err := w.Read(context.Background(), tail); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
