package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"rempart/voice/internal/audio"
	"rempart/voice/keying"
	"rempart/voice/media"
)

// Devices opens a handset's microphone and speaker for one call; close closes
// both and returns their errors.
type Devices func() (mic media.Source, speaker media.Sink, close func() error, err error)

// WAVDevices are the netns board's sound card: dir/mic.wav is heard by the
// microphone, dir/speaker.wav is what the speaker played, dir/stamps.json says
// when. A handset without mic.wav has no microphone and sends silence.
func WAVDevices(dir string) Devices {
	return func() (media.Source, media.Sink, func() error, error) {
		stamps, err := audio.NewStamps(filepath.Join(dir, "stamps.json"))
		if err != nil {
			return nil, nil, nil, err
		}
		var mic media.Source
		done := stamps.Close
		m, err := audio.OpenMicrophone(filepath.Join(dir, "mic.wav"), stamps, nil)
		switch {
		case err == nil:
			mic = m
			done = func() error { return errors.Join(m.Close(), stamps.Close()) }
		case errors.Is(err, fs.ErrNotExist):
			mic = noMicrophone{}
		default:
			return nil, nil, nil, errors.Join(err, stamps.Close())
		}
		speaker, err := audio.CreateSpeaker(filepath.Join(dir, "speaker.wav"), stamps, nil)
		if err != nil {
			return nil, nil, nil, errors.Join(err, done())
		}
		return mic, speaker, func() error { return errors.Join(speaker.Close(), done()) }, nil
	}
}

// CheckWAV says before a call whether the microphone's file, if there is one,
// is of the one format. It reads the header and nothing else.
func CheckWAV(dir string) func() error {
	return func() error {
		m, err := audio.OpenMicrophone(filepath.Join(dir, "mic.wav"), nil, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return m.Close()
	}
}

// noMicrophone never has a frame; the session sends silence in its place.
type noMicrophone struct{}

func (noMicrophone) ReadFrame(_ []int16, until int64) (bool, error) {
	time.Sleep(time.Duration(until - audio.Monotonic()))
	return false, nil
}

func (noMicrophone) FirstSampleAt() (int64, bool) { return 0, false }

// sound is the open audio of one call.
type sound struct {
	session *media.Session
	close   func() error
	ended   chan struct{}
	err     error
	stats   media.Stats
}

// openSound opens the devices and starts the session. failed is called if it
// ends by itself.
func openSound(devices Devices, conn net.PacketConn, remote netip.AddrPort, keys *keying.Result, idle time.Duration,
	failed func(error)) (*sound, error) {
	mic, speaker, closeDevices, err := devices()
	if err != nil {
		return nil, fmt.Errorf("cannot open the sound devices: %w", err)
	}
	session, err := media.NewSession(media.Config{Conn: conn, Remote: remote, Mic: mic, Speaker: speaker, Idle: idle,
		Keys: media.Keys{Send: keys.SendKey, Receive: keys.ReceiveKey, SendSSRC: keys.SendSSRC, ReceiveSSRC: keys.ReceiveSSRC}})
	if err != nil {
		return nil, errors.Join(err, closeDevices())
	}
	s := &sound{session: session, close: closeDevices, ended: make(chan struct{})}
	go func() {
		stats, err := session.Run(context.Background())
		s.stats, s.err = stats, errors.Join(err, s.close())
		close(s.ended)
		if err != nil {
			failed(err)
		}
	}()
	return s, nil
}

// stop ends the sound and returns when microphone and speaker are closed.
func (s *sound) stop() (media.Stats, error) {
	s.session.Stop()
	<-s.ended
	return s.stats, s.err
}
