package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenTUN makes the TUN device name in the calling thread's namespace and
// returns its descriptor: layer 3 frames without a protocol header, each
// with a virtio-net header in front so that segmentation offload works
// (IFF_TUN|IFF_NO_PI|IFF_VNET_HDR). The device is down and goes when the last
// copy of the descriptor is closed. The descriptor is blocking and
// close-on-exec; the holder needs no capability to use it.
func OpenTUN(name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("cannot name tun device %q: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open /dev/net/tun: %w", err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make tun device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	cmd, data uint32
}

// SetTXChecksum turns checksum offload of device name on or off. Off means
// that what it sends carries complete checksums, as on a wire; it takes
// segmentation offload with it.
func SetTXChecksum(name string, on bool) error {
	value := &ethtoolValue{cmd: unix.ETHTOOL_STXCSUM}
	if on {
		value.data = 1
	}
	// struct ifreq: the name, then a union that holds a pointer here.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	if len(name) >= len(req.name) {
		return fmt.Errorf("cannot set checksum offload of %q: %w", name, unix.EINVAL)
	}
	copy(req.name[:], name)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(value)
	req.data = unsafe.Pointer(value)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot set checksum offload of %s: %w", name, err)
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("cannot set checksum offload of %s: %w", name, errno)
	}
	return nil
}
