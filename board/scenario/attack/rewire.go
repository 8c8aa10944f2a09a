package attack

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kinds that rewire the kernel: tunnels, redirects and devices of the sender's own, and thefts of what is another's. They
// change the namespace that they run in and clean nothing up: for worlds that end with the attempt. They use the desk's ip,
// tc, nft and wg.
const (
	OwnWireGuard Kind = "own-wireguard"   // a WireGuard device with the tunnel's mark, to the gateway
	OwnESP       Kind = "own-esp"         // IPsec states of the sender's own
	OwnESPinUDP  Kind = "own-esp-in-udp"  // the same in UDP, from and to the tunnel's port
	FOU          Kind = "fou"             // an IP tunnel in UDP, from and to the tunnel's port
	FOURedirect  Kind = "fou-redirect"    // the same, fed by a redirect: no packet has a socket
	Redirect     Kind = "redirect"        // tc mirred: what enters a dummy leaves by the radio
	Forwarded    Kind = "forwarded"       // tc mirred ingress: the kernel forwards it, from a device of the sender's choice
	Pedit        Kind = "pedit"           // a filter on the root qdisc, behind every hook, writes into the tunnel's packets
	NftForward   Kind = "nft-forward"     // nft fwd from a dummy to the radio
	NftDuplicate Kind = "nft-duplicate"   // nft dup
	Bridged      Kind = "bridged"         // a bridge over the radio, fed through a veth
	MACVLAN      Kind = "macvlan"         // a second address on the radio
	IPVLAN       Kind = "ipvlan"          // the same at layer 3
	VLANDevice   Kind = "vlan-device"     // a device whose frames get a tag
	PktGen       Kind = "pktgen"          // the kernel's packet generator, which calls the driver
	OtherNetns   Kind = "other-namespace" // sent in a namespace of the sender's own, forwarded in black
	Moved        Kind = "moved"           // the radio moved to a user namespace where the sender is root
	NoFloor      Kind = "no-floor"        // clsact, and the floor on it, deleted
	Recreated    Kind = "recreated"       // the radio deleted, and another made with its name and number
	Detached     Kind = "detached"        // the gate's pins opened and its links detached, the floor deleted
	Joined       Kind = "joined"          // the sender moves into the tunnel's control group
	Stolen       Kind = "stolen"          // the tunnel's socket, taken out of tunneld by pidfd_getfd
	IoctlSet     Kind = "ioctl-set"       // the radio's address, flags and MTU set by ioctl
	PFKey        Kind = "pf-key"          // IPsec states by PF_KEY
)

func rewiring() map[Kind]kind {
	all := map[Kind]kind{}
	for k, run := range map[Kind]func(context.Context, Job, *tally){
		OwnWireGuard: runOwnWireGuard, OwnESP: runOwnESP, OwnESPinUDP: runOwnESP, FOU: runFOU, FOURedirect: runFOU, Redirect: runRedirect,
		Forwarded: runForwarded, Pedit: runPedit, NftForward: runNft, NftDuplicate: runNft, Bridged: runBridged, MACVLAN: runStacked,
		IPVLAN: runStacked, VLANDevice: runStacked, PktGen: runPktGen, OtherNetns: runOtherNetns, Moved: runMoved, NoFloor: runNoFloor,
		Recreated: runRecreated, Detached: runDetached, Joined: runJoined, Stolen: runStolen, IoctlSet: runIoctlSet, PFKey: runPFKey,
	} {
		all[k] = kind{run: run, target: true, device: true}
	}
	return all
}

// RewiringKinds are the kinds that change the namespace that they run in, sorted.
func RewiringKinds() []Kind { return slices.Sorted(maps.Keys(rewiring())) }

// Names of what the senders make.
const (
	ownDevice   = "atk0"
	ownOther    = "atk1"
	wireGuardMk = "0xca6c"
	tunnelPort  = 51820
)

// elsewhere is an address that is routed to a device of the sender's own.
func (j Job) elsewhere() netip.Addr {
	if j.Family == IPv6 {
		return netip.MustParseAddr("2001:db8:99::99")
	}
	return netip.MustParseAddr("192.0.2.99")
}

// ownPort and ownSPI stand for the marker where what leaves is encrypted.
func (j Job) ownPort() uint16 { return 0x8000 | binary.BigEndian.Uint16(j.Marker[:]) }
func (j Job) ownSPI() uint32  { return binary.BigEndian.Uint32(j.Marker[:]) | 1<<31 }

// Shows tells whether an Ethernet frame is the job's: it holds the marker, or, for the kinds whose packets are encrypted or
// not of the sender's writing, the UDP source port or the SPI that the sender made of it.
func (j Job) Shows(frame []byte) bool {
	if bytes.Contains(frame, j.Marker[:]) {
		return true
	}
	switch j.Kind {
	case OwnWireGuard, PktGen:
		proto, payload := transport(frame)
		return proto == unix.IPPROTO_UDP && len(payload) > 8 && binary.BigEndian.Uint16(payload) == j.ownPort()
	case OwnESP, OwnESPinUDP:
		proto, payload := transport(frame)
		if proto == unix.IPPROTO_UDP && len(payload) > 8 {
			proto, payload = unix.IPPROTO_ESP, payload[8:]
		}
		return proto == unix.IPPROTO_ESP && len(payload) > 4 && binary.BigEndian.Uint32(payload) == j.ownSPI()
	}
	return false
}

// transport returns what follows a plain IP header.
func transport(frame []byte) (proto byte, payload []byte) {
	switch {
	case len(frame) > 34 && frame[12] == 8 && frame[13] == 0 && frame[14] == 0x45:
		return frame[23], frame[34:]
	case len(frame) > 54 && frame[12] == 0x86 && frame[13] == 0xdd:
		return frame[20], frame[54:]
	}
	return 0, nil
}

// tool runs a program of the desk in the sender's namespace; why it failed becomes an errno.
func (t *tally) tool(name string, args ...string) bool { return t.toolIn("", name, args...) }

func (t *tally) toolIn(input, name string, args ...string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return true
	}
	t.refused(name+" "+strings.Join(args, " "), toolError(string(out), err))
	return false
}

// toolError finds the error number whose words a program printed.
func toolError(out string, err error) error {
	text := strings.ToLower(out)
	best := unix.Errno(0)
	for e := unix.Errno(1); e < 134; e++ {
		if words := e.Error(); strings.Contains(text, words) && (best == 0 || len(words) > len(best.Error())) {
			best = e
		}
	}
	out = strings.Join(strings.Fields(out), " ")
	if best == 0 {
		return fmt.Errorf("%w: %s", err, out)
	}
	return fmt.Errorf("%s: %w", out, best)
}

// each runs programs until one fails.
func (t *tally) each(lines ...string) bool {
	for _, l := range lines {
		words := strings.Fields(l)
		if !t.tool(words[0], words[1:]...) {
			return false
		}
	}
	return true
}

// ip begins a line for iproute2 in the job's family.
func (j Job) ip(rest string, args ...any) string {
	return fmt.Sprintf("ip -%d ", j.Family) + fmt.Sprintf(rest, args...)
}

// through routes elsewhere by a device, so that an ordinary socket's packets enter it.
func (j Job) through(device string) []string {
	return []string{"ip link set " + device + " up", j.ip("route replace %s dev %s", j.elsewhere(), device),
		j.ip("neigh replace %s lladdr %s dev %s nud permanent", j.elsewhere(), j.nextHop(), device)}
}

func (j Job) nextHop() string {
	if j.NextHop == nil {
		return "ff:ff:ff:ff:ff:ff"
	}
	return j.NextHop.String()
}

// sendTo sends the marker as ordinary datagrams.
func (j Job) sendTo(t *tally, to netip.Addr, port uint16) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if j.Source.IsValid() {
		// As a sender that has a choice would: elsewhere's route may pick none. It may be taken away by now.
		_ = unix.Bind(fd, sockaddr(j.Source, 0, 0))
	}
	for range j.count() {
		datagrams(t, fd, sockaddr(to, port, 0), j.Marker[:], 1, "udp send")
		time.Sleep(50 * time.Millisecond) // a device that has just come up may drop the first
	}
}

// queued is how long what a sender set going may take to leave.
const queued = 300 * time.Millisecond

func runOwnWireGuard(ctx context.Context, j Job, t *tally) {
	key := make([]byte, 32)
	copy(key, j.Marker[:])
	private := base64.StdEncoding.EncodeToString(key)
	key[31] = 9 // any point is a peer that will not answer
	peer := base64.StdEncoding.EncodeToString(key)
	if !t.each("ip link add " + ownDevice + " type wireguard") {
		return
	}
	// The handshake begins by itself: the kernel keeps the peer alive.
	if !t.toolIn(private, "wg", "set", ownDevice, "private-key", "/proc/self/fd/0", "listen-port", fmt.Sprint(j.ownPort()), "fwmark", wireGuardMk,
		"peer", peer, "endpoint", netip.AddrPortFrom(j.Target, tunnelPort).String(), "allowed-ips", j.elsewhere().String(), "persistent-keepalive", "1") {
		return
	}
	if t.each("ip link set " + ownDevice + " up") {
		t.did("handshake", nil)
		settle(ctx, queued)
	}
}

func runOwnESP(ctx context.Context, j Job, t *tally) {
	encap := ""
	if j.Kind == OwnESPinUDP {
		encap = fmt.Sprintf(" encap espinudp %d %d 0.0.0.0", tunnelPort, tunnelPort)
	}
	if t.each(
		fmt.Sprintf("ip xfrm state add src %s dst %s proto esp spi %#x reqid 7 mode transport aead rfc4106(gcm(aes)) 0x%s 128%s",
			j.Source, j.Target, j.ownSPI(), strings.Repeat("5a", 20), encap),
		fmt.Sprintf("ip xfrm policy add src %s dst %s proto udp dport 9 dir out tmpl src %s dst %s proto esp reqid 7 mode transport", j.Source, j.Target, j.Source, j.Target)) {
		j.sendTo(t, j.Target, 9)
		settle(ctx, queued)
	}
}

func runFOU(ctx context.Context, j Job, t *tally) {
	number, device := "4", fmt.Sprintf("ip link add %s type ipip", ownDevice)
	if j.Family == IPv6 {
		number, device = "41", fmt.Sprintf("ip link add %s type ip6tnl mode ip6ip6", ownDevice)
	}
	port := fmt.Sprint(tunnelPort)
	if !t.each(j.ip("fou add port 5599 ipproto %s", number),
		device+" local "+j.Source.String()+" remote "+j.Target.String()+" encap fou encap-sport "+port+" encap-dport "+port,
		"ip link set "+ownDevice+" up") {
		return
	}
	if j.Kind == FOU {
		if !t.each(j.ip("route replace %s dev %s", j.elsewhere(), ownDevice)) {
			return
		}
	} else if !j.redirect(t, ownDevice, "egress") {
		return
	}
	j.sendTo(t, j.elsewhere(), 9)
	settle(ctx, queued)
}

// redirect makes a dummy whose packets go to a device instead, and routes elsewhere into it.
func (j Job) redirect(t *tally, to, direction string) bool {
	return t.each(append([]string{"ip link add " + ownOther + " type dummy", "tc qdisc add dev " + ownOther + " clsact",
		"tc filter add dev " + ownOther + " egress matchall action mirred " + direction + " redirect dev " + to}, j.through(ownOther)...)...)
}

func runRedirect(ctx context.Context, j Job, t *tally) {
	if j.redirect(t, j.Device, "egress") {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// settle gives the kernel time to send what was set going.
func settle(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
