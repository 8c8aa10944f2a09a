package media

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/proof"
	"rempart/voice/codec"
	"rempart/voice/internal/audio"
)

// handset is one end with WAV devices, as a netns board has them.
type handset struct {
	dir     string
	stamps  *audio.Stamps
	mic     *audio.Microphone
	speaker *audio.Speaker
}

func newHandset(t testing.TB, pcm []int16, clock audio.Clock) *handset {
	t.Helper()
	h := &handset{dir: t.TempDir()}
	// A canonical WAV header: RIFF, 16 bytes of format (PCM, mono, 48000 Hz, 96000 byte/s, 2 bytes, 16 bits), data.
	b := append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, uint32(36+2*len(pcm)))...)
	b = append(b, "WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\xbb\x00\x00\x00\x77\x01\x00\x02\x00\x10\x00data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(2*len(pcm)))
	for _, v := range pcm {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	err := os.WriteFile(filepath.Join(h.dir, "mic.wav"), b, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if h.stamps, err = audio.NewStamps(filepath.Join(h.dir, "stamps.json")); err != nil {
		t.Fatal(err)
	}
	if h.mic, err = audio.OpenMicrophone(filepath.Join(h.dir, "mic.wav"), h.stamps, clock); err != nil {
		t.Fatal(err)
	}
	if h.speaker, err = audio.CreateSpeaker(filepath.Join(h.dir, "speaker.wav"), h.stamps, clock); err != nil {
		t.Fatal(err)
	}
	return h
}

// close closes the devices and returns what was heard and when.
func (h *handset) close(t testing.TB) ([]int16, audio.Marks) {
	t.Helper()
	if err := errors.Join(h.mic.Close(), h.speaker.Close(), h.stamps.Close()); err != nil {
		t.Fatal(err)
	}
	wav, err := os.ReadFile(filepath.Join(h.dir, "speaker.wav"))
	if err != nil {
		t.Fatal(err)
	}
	var marks audio.Marks
	data, err := os.ReadFile(filepath.Join(h.dir, "stamps.json"))
	if err = errors.Join(err, json.Unmarshal(data, &marks)); err != nil {
		t.Fatal(err)
	}
	out := make([]int16, (len(wav)-44)/2)
	for i := range out {
		out[i] = int16(binary.LittleEndian.Uint16(wav[44+2*i:]))
	}
	return out, marks
}

// throughCodec is what a listener hears of pcm when nothing is lost: the recipe by which a received file is checked against the
// sent one, at a desk too.
func throughCodec(t testing.TB, pcm []int16) []int16 {
	t.Helper()
	enc, errE := codec.NewEncoder()
	dec, errD := codec.NewDecoder()
	if err := errors.Join(errE, errD); err != nil {
		t.Fatal(err)
	}
	var out []int16
	packet, frame := make([]byte, codec.PacketSize), make([]int16, codec.FrameSamples)
	for i := 0; i+codec.FrameSamples <= len(pcm); i += codec.FrameSamples {
		if err := errors.Join(enc.Encode(packet, pcm[i:i+codec.FrameSamples]), dec.Decode(frame, packet)); err != nil {
			t.Fatal(err)
		}
		out = append(out, frame...)
	}
	return out
}

// TestFromFileToFile is a call between two handsets with WAV devices on the bubble's clock: what one's speaker file holds is
// what the other's microphone file holds, through the codec, sample for sample, and the stamps give the one-way latency.
func TestFromFileToFile(t *testing.T) {
	pcm := tone(9, 75)
	want := throughCodec(t, pcm)
	synctest.Test(t, func(t *testing.T) {
		a, b := newHandset(t, pcm, bubbleClock), newHandset(t, tone(10, 75), bubbleClock)
		c := newCall(t, func(ca, cb *Config) {
			ca.Mic, ca.Speaker, cb.Mic, cb.Speaker = a.mic, a.speaker, b.mic, b.speaker
		})
		c.wa.path = func(n int, _ []byte) []time.Duration {
			return []time.Duration{time.Duration(n*31%9) * time.Millisecond}
		}
		c.start(t)
		time.Sleep(2 * time.Second)
		c.stop(t)
		_, atA := a.close(t)
		heard, atB := b.close(t)
		if len(heard) < len(want) || !slices.Equal(heard[:len(want)], want) {
			t.Fatalf("%d samples were heard that are not the %d sent, through the codec", len(heard), len(want))
		}
		if atB.SpeakerUnderruns != 0 || atB.SpeakerFirstAudioNS != atB.SpeakerFirstSampleNS {
			t.Errorf("stamps %+v", atB)
		}
		enc, err := codec.NewEncoder()
		if err != nil {
			t.Fatal(err)
		}
		latency := time.Duration(atB.SpeakerFirstAudioNS-atA.MicFirstSampleNS) +
			time.Duration(enc.Lookahead())*time.Second/codec.SampleRate
		t.Logf("one-way latency, network included: %v", latency)
		if latency > 80*time.Millisecond {
			t.Errorf("one-way latency %v", latency)
		}
	})
}

// TestOverUDP is the same over real sockets and the kernel's clock. The machine may be busy, so that it asserts only what no
// load can change: sizes, authenticity, that speech arrives, that it ends.
func TestOverUDP(t *testing.T) {
	for name, host := range map[string]string{"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0"} {
		t.Run(name, func(t *testing.T) {
			var conns [2]net.PacketConn
			var addrs [2]netip.AddrPort
			for i := range conns {
				conn, err := net.ListenPacket("udp", host)
				if err != nil {
					proof.Missing(t, fmt.Sprintf("loopback for %s: %v", name, err))
				}
				defer conn.Close()
				conns[i], addrs[i] = conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()
			}
			keys := [2]Keys{
				{Send: key(1), Receive: key(2), SendSSRC: 5, ReceiveSSRC: 6},
				{Send: key(2), Receive: key(1), SendSSRC: 6, ReceiveSSRC: 5},
			}
			var hs [2]*handset
			var sessions [2]*Session
			for i := range sessions {
				hs[i] = newHandset(t, tone(uint64(i), 25), nil)
				var err error
				if sessions[i], err = NewSession(Config{Conn: conns[i], Remote: addrs[1-i], Keys: keys[i],
					Mic: hs[i].mic, Speaker: hs[i].speaker}); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			var stats [2]Stats
			for i, s := range sessions {
				wg.Go(func() {
					var err error
					if stats[i], err = s.Run(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(600 * time.Millisecond)
			sessions[0].Stop()
			sessions[1].Stop()
			wg.Wait()
			for i, st := range stats {
				heard, marks := hs[i].close(t)
				if st.Received == 0 || st.Played == 0 || st.Bad() != 0 || st.SentBytesMin != PacketSize || st.SentBytesMax != PacketSize {
					t.Errorf("handset %d: %+v", i, st)
				}
				if len(heard) < codec.FrameSamples || marks.MicFirstSampleNS == 0 || marks.SpeakerFirstAudioNS < marks.MicFirstSampleNS {
					t.Errorf("handset %d heard %d samples, %+v", i, len(heard), marks)
				}
				t.Logf("handset %d: %+v", i, st)
			}
		})
	}
}
