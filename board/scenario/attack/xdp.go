package attack

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xdpBusy is how long to wait for a queue that is being freed.
const xdpBusy = 3 * time.Second

// Sizes of the AF_XDP rings and frames: the smallest the kernel takes.
const (
	xdpFrames = 16
	xdpSize   = 2048
)

// runXDP sends by AF_XDP in copy mode, which reaches the driver below every tc
// and netfilter hook (kernel documentation, networking/af_xdp).
func runXDP(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, unix.AF_XDP, unix.SOCK_RAW, 0, "AF_XDP")
	if !ok {
		return
	}
	defer unix.Close(fd)
	x, what, err := newXDP(fd, j.Device)
	if err != nil {
		t.refused(what, err)
		return
	}
	defer x.close()
	f := j.frame(9, nil)
	for range min(j.count(), xdpFrames) {
		t.did("AF_XDP send on "+j.Device, x.send(fd, f))
	}
}

// xdp is a sending AF_XDP socket: a block of frames and a ring that names them.
type xdp struct {
	frames, ring []byte
	off          unix.XDPRingOffset
	next         uint32
}

// newXDP registers memory and binds to the device's first queue; what names the
// step that failed.
func newXDP(fd int, device string) (*xdp, string, error) {
	inet, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "udp", err
	}
	defer unix.Close(inet)
	index, err := deviceIndex(inet, device)
	if err != nil {
		return nil, "look for " + device, err
	}
	x := &xdp{}
	if x.frames, err = unix.Mmap(-1, 0, xdpFrames*xdpSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, "mmap", err
	}
	if what, err := x.setUp(fd, index); err != nil {
		x.close()
		return nil, what, err
	}
	return x, "", nil
}

func (x *xdp) setUp(fd, index int) (string, error) {
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.frames[0]))), Len: uint64(len(x.frames)), Size: xdpSize}
	if err := setsockopt(fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); err != nil {
		return "XDP_UMEM_REG", err
	}
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring, xdpFrames); err != nil {
			return "XDP ring", err
		}
	}
	var offs unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offs))
	if _, _, no := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&offs)), uintptr(unsafe.Pointer(&size)), 0); no != 0 {
		return "XDP_MMAP_OFFSETS", no
	}
	x.off = offs.Tx
	var err error
	x.ring, err = unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, int(offs.Tx.Desc)+xdpFrames*int(unsafe.Sizeof(unix.XDPDesc{})),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return "XDP ring mmap", err
	}
	// The kernel frees the queue of a closed AF_XDP socket later, from a work
	// queue: a device that the last attempt has just left is busy for a moment,
	// and that is no refusal.
	for end := time.Now().Add(xdpBusy); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Bind(fd, &unix.SockaddrXDP{Ifindex: uint32(index), Flags: unix.XDP_COPY})
		if err == nil {
			return "", nil
		}
		if err != unix.EBUSY || time.Now().After(end) {
			return "AF_XDP bind", err
		}
	}
}

// send puts one frame on the ring and kicks the kernel. A ring is never reused:
// there are at most xdpFrames sends.
func (x *xdp) send(fd int, frame []byte) error {
	at := x.next * xdpSize
	copy(x.frames[at:at+xdpSize], frame)
	desc := x.ring[int(x.off.Desc)+int(x.next)*16:]
	binary.NativeEndian.PutUint64(desc, uint64(at))
	binary.NativeEndian.PutUint32(desc[8:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(desc[12:], 0)
	x.next++
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&x.ring[x.off.Producer])), x.next)
	return unix.Send(fd, nil, unix.MSG_DONTWAIT)
}

func (x *xdp) close() {
	if x.ring != nil {
		unix.Munmap(x.ring)
	}
	unix.Munmap(x.frames)
}

func setsockopt(fd, name int, p unsafe.Pointer, n uintptr) error {
	if _, _, no := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name), uintptr(p), n, 0); no != 0 {
		return no
	}
	return nil
}
