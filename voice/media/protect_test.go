package media

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"rempart/internal/proof"
	"rempart/voice/codec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rfc7714Seal is RFC 7714 §8 and §9 written down once more, from session keys: the packet is a plain RTP packet with a header
// of 12 bytes.
func rfc7714Seal(t testing.TB, sessionKey, sessionSalt, packet []byte, roc uint32) []byte {
	t.Helper()
	block, err := aes.NewCipher(sessionKey)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, 12) // §8.1: 00 00 ‖ SSRC ‖ ROC ‖ SEQ, xor the salt
	copy(iv[2:], packet[8:12])
	binary.BigEndian.PutUint32(iv[6:], roc)
	copy(iv[10:], packet[2:4])
	for i := range iv {
		iv[i] ^= sessionSalt[i]
	}
	return aead.Seal(slices.Clone(packet[:12]), iv, packet[12:], packet[:12])
}

// derive7714 is the key derivation of RFC 3711 §4.3 with AES_256_CM_PRF (RFC 6188 §3), key derivation rate 0.
func derive7714(t testing.TB, master, salt []byte) (sessionKey, sessionSalt []byte) {
	t.Helper()
	block, err := aes.NewCipher(master)
	if err != nil {
		t.Fatal(err)
	}
	generate := func(label byte, n int) []byte {
		iv := make([]byte, 16)
		copy(iv, salt) // 96 bits of salt, as the high bits of 112 (RFC 7714 §11)
		iv[7] ^= label
		out := make([]byte, n)
		cipher.NewCTR(block, iv).XORKeyStream(out, out)
		return out
	}
	return generate(0, KeySize), generate(2, SaltSize)
}

// TestRFC7714Vector holds the reference above against the vector of RFC 7714 §16.2.1.
func TestRFC7714Vector(t *testing.T) {
	key := unhex(t, "000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f")
	salt := unhex(t, "517569642070726f2071756f")
	plain := unhex(t, `8040f17b 8041f8d3 5501a0b2 47616c6c 69612065 7374206f 6d6e6973 20646976
		69736120 696e2070 61727465 73207472 6573`)
	want := unhex(t, `8040f17b 8041f8d3 5501a0b2 32b1de78 a822fe12 ef9f78fa 332e33aa b1801238
		9a58e2f3 b50b2a02 76ffae0f 1ba63799 b87b7aa3 db36dfff d6b0f9bb 7878d7a7 6c13`)
	if got := rfc7714Seal(t, key, salt, plain, 0); !bytes.Equal(got, want) {
		t.Errorf("sealed\n%x, the RFC has\n%x", got, want)
	}
}

// TestPacketsAreRFC7714 holds every packet of the sealer, over a rollover, against the reference.
func TestPacketsAreRFC7714(t *testing.T) {
	proof.SFR(t, "FCS_COP.1/SRTP", "")
	k := key(33)
	s, err := newSealer(k, 0xcafe)
	if err != nil {
		t.Fatal(err)
	}
	sessionKey, sessionSalt := derive7714(t, k.Reveal()[:KeySize], k.Reveal()[KeySize:])
	first, stamp := s.header.SequenceNumber, s.header.Timestamp
	if first > 0x7fff {
		t.Errorf("the first sequence number is %d", first)
	}
	payload := make([]byte, codec.PacketSize)
	for n := range uint64(70000) {
		payload[0], payload[1] = byte(n), byte(n>>8)
		got, err := s.seal(payload)
		if err != nil {
			t.Fatal(err)
		}
		if n%97 != 0 && n > 50 && uint16(uint64(first)+n) > 50 { // the rollover's neighbours and a sample
			continue
		}
		plain := []byte{0x80, PayloadType}
		plain = binary.BigEndian.AppendUint16(plain, uint16(uint64(first)+n))
		plain = binary.BigEndian.AppendUint32(plain, stamp+uint32(n)*codec.FrameSamples)
		plain = binary.BigEndian.AppendUint32(plain, 0xcafe)
		want := rfc7714Seal(t, sessionKey, sessionSalt, append(plain, payload...), uint32((uint64(first)+n)>>16))
		if !bytes.Equal(got, want) {
			t.Fatalf("packet %d is\n%x, RFC 7714 has\n%x", n, got, want)
		}
	}
}

func newEnds(t testing.TB) (*sealer, *opener) {
	t.Helper()
	s, err := newSealer(key(1), 7)
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOpener(key(1), 7)
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func sealNext(t testing.TB, s *sealer, fill byte) []byte {
	t.Helper()
	p, err := s.seal(bytes.Repeat([]byte{fill}, codec.PacketSize))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(p)
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(p []byte) []byte
		want   error
	}{
		{"empty", func([]byte) []byte { return nil }, errSize},
		{"a byte short", func(p []byte) []byte { return p[:len(p)-1] }, errSize},
		{"a byte long", func(p []byte) []byte { return append(p, 0) }, errSize},
		{"version 1", func(p []byte) []byte { p[0] = 0x40; return p }, errHeader},
		{"padding", func(p []byte) []byte { p[0] |= 0x20; return p }, errHeader},
		{"extension", func(p []byte) []byte { p[0] |= 0x10; return p }, errHeader},
		{"contributing source", func(p []byte) []byte { p[0] |= 1; return p }, errHeader},
		{"other payload type", func(p []byte) []byte { p[1]++; return p }, errHeader},
		{"other source", func(p []byte) []byte { p[11]++; return p }, errHeader},
		{"marker set on the way", func(p []byte) []byte { p[1] |= 0x80; return p }, errForged},
		{"other sequence number", func(p []byte) []byte { p[3] += 9; return p }, errForged},
		{"other timestamp", func(p []byte) []byte { p[7]++; return p }, errForged},
		{"speech changed", func(p []byte) []byte { p[40] ^= 1; return p }, errForged},
		{"tag changed", func(p []byte) []byte { p[len(p)-1] ^= 1; return p }, errForged},
		{"zeros for a tag", func(p []byte) []byte { clear(p[len(p)-tagSize:]); return p }, errForged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, o := newEnds(t)
			if _, _, err := o.open(sealNext(t, s, 1)); err != nil {
				t.Fatal(err)
			}
			p := sealNext(t, s, 2)
			if _, payload, err := o.open(tc.change(slices.Clone(p))); !errors.Is(err, tc.want) || payload != nil {
				t.Errorf("%v, want %v", err, tc.want)
			}
			// The refused one changed nothing: the real one opens, once.
			if _, payload, err := o.open(p); err != nil || payload[0] != 2 {
				t.Errorf("the real packet after it: %v", err)
			}
			if _, _, err := o.open(p); !errors.Is(err, errReplay) {
				t.Errorf("the real packet twice: %v", err)
			}
		})
	}
}

func TestOpenWithAnotherKey(t *testing.T) {
	s, _ := newEnds(t)
	o, err := newOpener(key(2), 7)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.open(sealNext(t, s, 1)); !errors.Is(err, errForged) {
		t.Errorf("opened with another key: %v", err)
	}
}

func TestSourceOfTheFirstAuthenticPacket(t *testing.T) {
	s, _ := newEnds(t)
	o, err := newOpener(key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	forged := sealNext(t, s, 1)
	forged[11], forged[20] = 99, forged[20]^1
	if _, _, err := o.open(forged); !errors.Is(err, errForged) {
		t.Fatal(err)
	}
	if _, _, err := o.open(sealNext(t, s, 2)); err != nil {
		t.Fatalf("a forged packet chose the source: %v", err)
	}
	other, err := newSealer(key(1), 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.open(sealNext(t, other, 3)); !errors.Is(err, errHeader) {
		t.Errorf("a second source: %v", err)
	}
}

// TestRollover runs two hours of a call with packets out of order around each rollover, and a forger who sends packets that
// would move the rollover counter if they were believed (ROC poisoning).
func TestRollover(t *testing.T) {
	s, o := newEnds(t)
	forged := make([]byte, PacketSize)
	forged[0], forged[1], forged[11] = 0x80, PayloadType, 7
	var first uint64
	var held []byte
	for n := range uint64(3 << 16) {
		p := sealNext(t, s, byte(n))
		seq := binary.BigEndian.Uint16(p[2:])
		if n == 0 {
			first, _, _ = o.open(p)
			continue
		}
		if n%1000 == 0 {
			binary.BigEndian.PutUint16(forged[2:], seq+0x7000)
			if _, _, err := o.open(forged); !errors.Is(err, errForged) {
				t.Fatalf("packet %d: a forged one: %v", n, err)
			}
		}
		if seq == 0xffff { // comes after the rollover
			held = p
			continue
		}
		index, payload, err := o.open(p)
		if err != nil || index != first+n || payload[0] != byte(n) {
			t.Fatalf("packet %d, sequence number %d: index %d, %v", n, seq, index-first, err)
		}
		if held != nil && seq == 3 {
			if index, _, err := o.open(held); err != nil || index != first+n-4 {
				t.Fatalf("the last packet before a rollover, late: index %d of %d, %v", index-first, n-4, err)
			}
			held = nil
		}
	}
}

func TestReplayWindow(t *testing.T) {
	s, o := newEnds(t)
	old := sealNext(t, s, 1)
	for range replayWindow - 1 {
		if _, _, err := o.open(sealNext(t, s, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := o.open(old); err != nil {
		t.Errorf("a packet at the edge of the window: %v", err)
	}
	s, o = newEnds(t)
	old = sealNext(t, s, 1)
	for range replayWindow + 1 {
		if _, _, err := o.open(sealNext(t, s, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := o.open(old); !errors.Is(err, errReplay) {
		t.Errorf("a packet behind the window: %v", err)
	}
}

func TestSealWrongSize(t *testing.T) {
	s, _ := newEnds(t)
	for _, n := range []int{0, codec.PacketSize - 1, codec.PacketSize + 1} {
		if _, err := s.seal(make([]byte, n)); err == nil {
			t.Errorf("%d bytes of speech were sealed", n)
		}
	}
}

// FuzzOpen: no bytes from the wire are opened without the key, and none harm the real stream.
func FuzzOpen(f *testing.F) {
	stranger, err := newSealer(key(9), 7)
	if err != nil {
		f.Fatal(err)
	}
	good := sealNext(f, stranger, 1)
	f.Add(good)
	f.Add(good[:20])
	f.Add(append(slices.Clone(good), 0))
	f.Add(bytes.Repeat([]byte{0x90}, PacketSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, o := newEnds(t)
		if _, _, err := o.open(sealNext(t, s, 1)); err != nil {
			t.Fatal(err)
		}
		if _, payload, err := o.open(b); err == nil || payload != nil {
			t.Fatal("opened without the key")
		}
		if _, _, err := o.open(sealNext(t, s, 2)); err != nil {
			t.Fatalf("the stream after it: %v", err)
		}
	})
}

func BenchmarkSealOpen(b *testing.B) {
	s, o := newEnds(b)
	payload := make([]byte, codec.PacketSize)
	b.ReportAllocs()
	for b.Loop() {
		p, err := s.seal(payload)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := o.open(p); err != nil {
			b.Fatal(err)
		}
	}
}
