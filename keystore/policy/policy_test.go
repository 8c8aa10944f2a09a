package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func key(t *testing.T, curve elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNamesAreFixed: an approval signed today names the floor index of every
// handset. These literals may never change.
func TestNamesAreFixed(t *testing.T) {
	for index, want := range map[Index]string{
		AliveIndex: "000bff8018d746b7fdf664790a0158d8981dbb70b9755065a812522257eff20c1f7c",
		FloorIndex: "000b763e8305c6a0022c51156670edd2a179f488656f77038aef971b8af629505eb0",
	} {
		if got := IndexName(index); hex.EncodeToString(got[:]) != want {
			t.Errorf("name of %v is %x", index, got)
		}
	}
}

// TestInnerIsFixed is a recorded vector: PCR 11 of ones, PCR 13 of twos, serial 3.
func TestInnerIsFixed(t *testing.T) {
	pcrs := map[int][32]byte{}
	for i, pcr := range []int{11, 13} {
		var value [32]byte
		for j := range value {
			value[j] = byte(i + 1)
		}
		pcrs[pcr] = value
	}
	inner, err := Inner(pcrs, 3)
	if err != nil || string(inner[:]) != string(unhex(t, "498b2f4ba9eac5ad7e7629493f3898dcc2ecb8317f710b2d190fd04a9935dea0")) {
		t.Errorf("inner is %x, %v", inner, err)
	}
	outer := Outer(IndexName(FloorIndex), RefUser, 7)
	if string(outer[:]) != string(unhex(t, "9daab90b25a590b0f78d6a268490d5dd6ddccb40941592fdf0ee13564d304621")) {
		t.Errorf("outer is %x", outer)
	}
}

func TestInnerRefuses(t *testing.T) {
	good := map[int][32]byte{13: {}}
	for name, c := range map[string]struct {
		pcrs   map[int][32]byte
		serial int
	}{
		"serial 0":  {good, 0},
		"serial 64": {good, 64}, // its bit would be no bit: never revoked
		"serial -1": {good, -1},
		"no pcr":    {nil, 3},
		"pcr 24":    {map[int][32]byte{24: {}}, 3},
		"pcr -1":    {map[int][32]byte{-1: {}}, 3},
	} {
		if inner, err := Inner(c.pcrs, c.serial); err == nil || inner != [32]byte{} {
			t.Errorf("%s: %x, %v", name, inner, err)
		}
	}
}

func TestEveryInputMatters(t *testing.T) {
	pcrs := func(a, b byte) map[int][32]byte { return map[int][32]byte{11: {a}, 13: {b}} }
	seen := map[[32]byte]string{}
	add := func(name string, digest [32]byte) {
		if other, ok := seen[digest]; ok {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[digest] = name
	}
	inner := func(p map[int][32]byte, serial int) [32]byte {
		digest, err := Inner(p, serial)
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	add("inner", inner(pcrs(1, 2), 3))
	add("values swapped", inner(pcrs(2, 1), 3))
	add("serial", inner(pcrs(1, 2), 4))
	add("one pcr less", inner(map[int][32]byte{11: {1}}, 3))
	add("one pcr more", inner(map[int][32]byte{11: {1}, 13: {2}, 15: {}}, 3))
	k1, err := KeyName(key(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	k2, err := KeyName(key(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	add("outer", Outer(k1, RefUser, 1))
	add("key", Outer(k2, RefUser, 1))
	add("ref", Outer(k1, RefBoot, 1))
	add("alive", Outer(k1, RefUser, 2))
	add("approval", Approval(inner(pcrs(1, 2), 3), RefUser))
	add("approval's ref", Approval(inner(pcrs(1, 2), 3), RefBoot))
}

func TestFloor(t *testing.T) {
	for serial := MinSerial; serial <= MaxSerial; serial++ {
		floor := FloorFor(serial)
		if floor&SerialBit(serial) != 0 || floor&SerialBit(serial-1) == 0 || floor&1 == 0 {
			t.Errorf("floor for %d is %#x", serial, floor)
		}
		if Lowest(floor) != serial {
			t.Errorf("lowest of %#x is %d", floor, Lowest(floor))
		}
	}
	if Lowest(^uint64(0)) != MaxSerial+1 || Lowest(0) != MinSerial {
		t.Error("lowest at the ends")
	}
}

func TestKeyPublicRefusesOtherKeys(t *testing.T) {
	if _, err := KeyName(key(t, elliptic.P384())); err == nil {
		t.Error("named a P-384 key")
	}
	if _, err := KeyName(nil); err == nil {
		t.Error("named no key")
	}
	area, err := KeyPublic(key(t, elliptic.P256()))
	if err != nil || len(area) != 20+2*34 {
		t.Errorf("%d bytes, %v", len(area), err)
	}
}

func TestPCRDigestIsInOrder(t *testing.T) {
	one, two := [32]byte{1}, [32]byte{2}
	want := sha256.Sum256(append(one[:], two[:]...))
	for range 20 { // maps have no order
		if PCRDigest(map[int][32]byte{13: two, 11: one}) != want {
			t.Fatal("digest depends on the map's order")
		}
	}
}
