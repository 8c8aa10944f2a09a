package attack

import (
	"context"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The parts of io_uring's interface that one send needs (linux/io_uring.h).
const (
	uringOpSend    = 26 // IORING_OP_SEND
	uringEnterWait = 1  // IORING_ENTER_GETEVENTS
	uringOffCQ     = 0x8000000
	uringOffSQEs   = 0x10000000
)

type uringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	_                                                                  [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		userAddr                                            uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		userAddr                                            uint64
	}
}

type uringEntry struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	length    uint32
	opFlags   uint32
	userData  uint64
	_         [3]uint64
}

// runURing sends from the kernel's ring: no send call is made by this process.
func runURing(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(j.Target, j.port(9), 0)); err != nil {
		t.refused("connect", err)
		return
	}
	var p uringParams
	ring, _, no := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if no != 0 {
		t.refused("io_uring", os.NewSyscallError("io_uring_setup", no))
		return
	}
	defer unix.Close(int(ring))
	sq, err := mapRing(int(ring), 0, int(p.sq.array+p.sqEntries*4))
	if err != nil {
		t.refused("io_uring submission ring", err)
		return
	}
	defer unix.Munmap(sq)
	cq, err := mapRing(int(ring), uringOffCQ, int(p.cq.cqes+p.cqEntries*16))
	if err != nil {
		t.refused("io_uring completion ring", err)
		return
	}
	defer unix.Munmap(cq)
	entries, err := mapRing(int(ring), uringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(uringEntry{})))
	if err != nil {
		t.refused("io_uring entries", err)
		return
	}
	defer unix.Munmap(entries)
	payload := j.Marker
	word := func(ring []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&ring[at])) }
	for range min(j.count(), int(p.sqEntries)) {
		tail := atomic.LoadUint32(word(sq, p.sq.tail))
		slot := tail & *word(sq, p.sq.mask)
		*(*uringEntry)(unsafe.Pointer(&entries[uintptr(slot)*unsafe.Sizeof(uringEntry{})])) = uringEntry{
			op: uringOpSend, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(&payload))), length: uint32(len(payload)),
		}
		*word(sq, p.sq.array+4*slot) = slot
		atomic.StoreUint32(word(sq, p.sq.tail), tail+1)
		if _, _, no := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, uringEnterWait, 0, 0); no != 0 {
			t.refused("io_uring send", os.NewSyscallError("io_uring_enter", no))
			return
		}
		head := atomic.LoadUint32(word(cq, p.cq.head))
		result := *(*int32)(unsafe.Pointer(&cq[p.cq.cqes+16*(head&*word(cq, p.cq.mask))+8]))
		atomic.StoreUint32(word(cq, p.cq.head), head+1)
		if result < 0 {
			t.refused("io_uring send", unix.Errno(-result))
		} else {
			t.did("io_uring send", nil)
		}
	}
}

func mapRing(fd int, offset int64, size int) ([]byte, error) {
	return unix.Mmap(fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}
