package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"golang.org/x/crypto/curve25519"

	"rempart/internal/journal"
	"rempart/internal/secret"
)

// Tunnel is one WireGuard device on an inherited TUN descriptor. Its methods may
// be called from several goroutines.
type Tunnel struct {
	device *device.Device
	bind   *bind
	public Key

	mu    sync.Mutex
	peers []Peer // as last set
}

// Open builds the device. It works on a duplicate of file, so that the same
// inherited descriptor serves again after Close, and wipes key, which is an
// X25519 private key of 32 bytes. journal may be nil.
func Open(file *os.File, key *secret.Bytes, j *journal.Journal) (*Tunnel, error) {
	defer key.Wipe()
	if key.Len() != device.NoisePrivateKeySize {
		return nil, fmt.Errorf("cannot open the tunnel, its key has %d bytes instead of %d", key.Len(), device.NoisePrivateKeySize)
	}
	t := &Tunnel{bind: newBind()}
	var private device.NoisePrivateKey
	defer clear(private[:])
	copy(private[:], key.Reveal())
	// RFC 7748 §5: every X25519 private key is used in this form.
	private[0] &= 248
	private[31] = private[31]&127 | 64
	public, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		return nil, fmt.Errorf("cannot open the tunnel: %w", err)
	}
	t.public = Key(public)
	dev, err := adopt(file)
	if err != nil {
		return nil, fmt.Errorf("cannot open the tunnel on the inherited tun: %w", err)
	}
	log := &bounded{journal: j, now: time.Now}
	t.device = device.NewDevice(inherited{Device: dev, mtu: MTU}, t.bind, log.logger())
	if err := t.device.SetPrivateKey(private); err != nil {
		t.device.Close()
		return nil, fmt.Errorf("cannot open the tunnel with its key: %w", err)
	}
	return t, nil
}

// adopt duplicates the descriptor and makes it wireguard-go's.
func adopt(file *os.File) (tun.Device, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	// Not file.Fd(): that would set the description that both share to blocking.
	if err := raw.Control(func(f uintptr) { fd, dupErr = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return dev, nil
}

// Public is the key's public half.
func (t *Tunnel) Public() Key { return t.public }

// Connect drops every peer, session and socket, opens new ones, and starts a
// handshake with peer at once: a new peer owes no five seconds of silence to an
// attempt before it.
func (t *Tunnel) Connect(peer Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := Check([]Peer{peer}); err != nil {
		return err
	}
	if !peer.Endpoint.IsValid() {
		return errors.New("cannot connect to a peer without an endpoint")
	}
	if err := t.down(); err != nil {
		return err
	}
	t.bind.only = netip.AddrPortFrom(peer.Endpoint.Addr().Unmap(), peer.Endpoint.Port())
	if err := t.up(); err != nil {
		return err
	}
	// Turning the keepalive on sends one, which starts the handshake.
	if err := t.device.IpcSet(peerText(peer, false)); err != nil {
		t.device.RemoveAllPeers()
		return fmt.Errorf("cannot connect to %s: %w", peer.Endpoint, err)
	}
	t.peers = []Peer{peer}
	if err := t.bind.failed.Swap(nil); err != nil {
		return fmt.Errorf("cannot send to %s: %w", peer.Endpoint, *err)
	}
	return nil
}

// Listen opens the sockets on port and serves peers, whose endpoints it learns.
func (t *Tunnel) Listen(port uint16, peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := listenable(peers); err != nil {
		return err
	}
	if err := t.down(); err != nil {
		return err
	}
	t.bind.only = netip.AddrPort{}
	if err := t.device.IpcSet("listen_port=" + strconv.Itoa(int(port)) + "\n"); err != nil {
		return fmt.Errorf("cannot listen on UDP port %d: %w", port, err)
	}
	if err := t.up(); err != nil {
		return fmt.Errorf("UDP port %d: %w", port, err)
	}
	return t.replace(peers)
}

// SetPeers replaces a listener's set of peers under one lock: all of it is
// checked before any of it is set. A peer that stays keeps its session.
func (t *Tunnel) SetPeers(peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := listenable(peers); err != nil {
		return err
	}
	return t.replace(peers)
}

func listenable(peers []Peer) error {
	for i, p := range peers {
		if p.Endpoint.IsValid() {
			return fmt.Errorf("cannot listen for peer %d, its endpoint is fixed", i)
		}
	}
	return Check(peers)
}

// replace is called with mu held and peers checked.
func (t *Tunnel) replace(peers []Peer) error {
	if slices.ContainsFunc(peers, func(p Peer) bool { return p.Key == t.public }) {
		return errors.New("cannot set a peer that has this end's own key")
	}
	text := replaceText(t.peers, peers)
	if text == "" {
		return nil
	}
	if err := t.device.IpcSet(text); err != nil {
		// Half a set is no set: nobody may connect until the next one.
		t.device.RemoveAllPeers()
		t.peers = nil
		return fmt.Errorf("cannot set %d peers: %w", len(peers), err)
	}
	t.peers = clonePeers(peers)
	return nil
}

func clonePeers(peers []Peer) []Peer {
	out := slices.Clone(peers)
	for i := range out {
		out[i].Inner = slices.Clone(out[i].Inner)
	}
	return out
}

// up opens the sockets. wireguard-go answers nil for a device that is closed.
func (t *Tunnel) up() error {
	if t.closed() {
		return errors.New("cannot bring the tunnel up, its device is closed")
	}
	if err := t.device.Up(); err != nil {
		return fmt.Errorf("cannot open the tunnel's sockets: %w", err)
	}
	return nil
}

// Rehandshake starts a new handshake with every peer of which an endpoint is
// known, without dropping the session. wireguard-go sends none within 5 s
// of the last.
func (t *Tunnel) Rehandshake() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, p := range t.peers {
		if peer := t.device.LookupPeer(device.NoisePublicKey(p.Key)); peer != nil {
			errs = append(errs, peer.SendHandshakeInitiation(false))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot start a handshake: %w", err)
	}
	return nil
}

// Down closes the sockets and forgets every session and peer. The key stays.
func (t *Tunnel) Down() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.down()
}

func (t *Tunnel) down() error {
	err := t.device.Down()
	t.device.RemoveAllPeers()
	t.peers = nil
	t.bind.failed.Store(nil)
	if err != nil {
		return fmt.Errorf("cannot close the tunnel's sockets: %w", err)
	}
	return nil
}

// Peers returns every peer's status, in no order.
func (t *Tunnel) Peers() ([]Status, error) {
	var d dump
	if err := t.device.IpcGetOperation(&d); err != nil {
		return nil, fmt.Errorf("cannot read the device's status: %w", err)
	}
	return d.peers, d.err
}

// Traffic is what passed in all sessions together and what failed.
type Traffic struct {
	// Data counts data packets sent, keepalives left out.
	Data uint64
	// Failed is the last failed send since the last call, or nil.
	Failed error
}

// Traffic returns the counts.
func (t *Tunnel) Traffic() Traffic {
	tr := Traffic{Data: t.bind.data.Load()}
	if err := t.bind.failed.Swap(nil); err != nil {
		tr.Failed = *err
	}
	return tr
}

// Done is closed when the device has ended: by Close, or because the TUN device
// is gone.
func (t *Tunnel) Done() <-chan struct{} { return t.device.Wait() }

func (t *Tunnel) closed() bool {
	select {
	case <-t.device.Wait():
		return true
	default:
		return false
	}
}

// Close ends the device: sockets, sessions, the duplicate of the descriptor, and
// the key as far as wireguard-go lets go of it. It may be called twice.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers = nil
	t.device.RemoveAllPeers()
	err := t.device.SetPrivateKey(device.NoisePrivateKey{})
	t.device.Close()
	if err != nil {
		return fmt.Errorf("cannot wipe the tunnel key: %w", err)
	}
	return nil
}

// Reason is a failure in words for a status: the system's own where there is
// one, without addresses of this process's sockets.
func Reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return strings.TrimSpace(err.Error())
}
