package attack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// runForwarded lets the kernel forward: what enters one dummy is received by another, and leaves by the radio as a packet
// that never had a sender here.
func runForwarded(ctx context.Context, j Job, t *tally) {
	if !t.each("ip link add " + ownDevice + " address 02:00:00:00:00:aa type dummy") {
		return
	}
	if !j.forwarding(t, ownDevice) || !j.redirect(t, ownDevice, "ingress") {
		return
	}
	// For the second dummy the packet is its own, and the way on is the radio.
	if t.each("ip link set "+ownDevice+" up", j.ip("neigh replace %s lladdr 02:00:00:00:00:aa dev %s nud permanent", j.elsewhere(), ownOther),
		j.ip("rule add iif %s lookup 99", ownDevice), j.ip("route add %s dev %s table 99", j.elsewhere(), j.Device),
		j.ip("neigh replace %s lladdr %s dev %s nud permanent", j.elsewhere(), j.nextHop(), j.Device)) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// forwarding makes the namespace a router that takes its own address for another's from device.
func (j Job) forwarding(t *tally, device string) bool {
	keys := []string{"ipv4/ip_forward", "ipv4/conf/" + device + "/accept_local", "ipv4/conf/all/accept_local"}
	off := []string{"ipv4/conf/all/rp_filter", "ipv4/conf/" + device + "/rp_filter"}
	if j.Family == IPv6 {
		keys, off = []string{"ipv6/conf/all/forwarding"}, nil
	}
	for value, names := range map[string][]string{"1": keys, "0": off} {
		for _, k := range names {
			if err := os.WriteFile("/proc/sys/net/"+k, []byte(value), 0); err != nil {
				t.refused("sysctl "+k, err)
				return false
			}
		}
	}
	return true
}

// runPedit puts a qdisc in the place behind gate, floor and nft, whose filter writes the marker over the first bytes of
// every UDP payload that passes: the tunnel's own packets carry it out.
func runPedit(ctx context.Context, j Job, t *tally) {
	protocol, at := "ip", 28
	if j.Family == IPv6 {
		protocol, at = "ipv6", 48
	}
	munge := ""
	for i := 0; i < len(j.Marker); i += 4 {
		munge += fmt.Sprintf(" munge offset %d u32 set %#08x", at+i, binary.BigEndian.Uint32(j.Marker[i:]))
	}
	if t.each("tc qdisc replace dev "+j.Device+" root handle 1: prio",
		"tc filter add dev "+j.Device+" parent 1: protocol "+protocol+" prio 1 u32 match u32 0 0 action pedit"+munge) {
		t.did("filter", nil)
		settle(ctx, 2*queued)
	}
}

// runNft lets a netdev chain of the sender's own hand its packets to the radio.
func runNft(ctx context.Context, j Job, t *tally) {
	how := "fwd"
	if j.Kind == NftDuplicate {
		how = "dup"
	}
	if !t.each("ip link add " + ownOther + " type dummy") {
		return
	}
	rules := fmt.Sprintf("table netdev attack {\n\tchain e {\n\t\ttype filter hook egress device \"%s\" priority 0;\n\t\t%s to \"%s\"\n\t}\n}\n", ownOther, how, j.Device)
	if t.toolIn(rules, "nft", "-f", "-") && t.each(j.through(ownOther)...) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// runBridged makes the radio a port of a bridge: frames from a veth leave by it.
func runBridged(ctx context.Context, j Job, t *tally) {
	if t.each("ip link add atkbr type bridge", "ip link set "+j.Device+" master atkbr", "ip link add "+ownDevice+" type veth peer name "+ownOther,
		"ip link set "+ownOther+" master atkbr", "ip link set "+ownOther+" up", "ip link set atkbr up") && t.each(j.through(ownDevice)...) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// runStacked makes a device on top of the radio.
func runStacked(ctx context.Context, j Job, t *tally) {
	kind := map[Kind]string{MACVLAN: "macvlan mode bridge", IPVLAN: "ipvlan mode l2", VLANDevice: "vlan id 7"}[j.Kind]
	if !t.each("ip link add link " + j.Device + " name " + ownDevice + " type " + kind) {
		return
	}
	lines := j.through(ownDevice)
	if j.Kind == IPVLAN {
		// It sends from its own addresses only.
		own := "192.0.2.98/32"
		if j.Family == IPv6 {
			own = "2001:db8:99::98/128 nodad"
		}
		lines = append([]string{j.ip("addr add %s dev %s", own, ownDevice)}, lines...)
	}
	if t.each(lines...) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// runPktGen lets the kernel's generator, which must be loaded, call the radio's driver.
func runPktGen(ctx context.Context, j Job, t *tally) {
	say := func(file, line string) bool {
		f, err := os.OpenFile("/proc/net/pktgen/"+file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(line + "\n")
			f.Close()
		}
		if err != nil {
			t.refused("pktgen "+line, err)
		}
		return err == nil
	}
	if !say("kpktgend_0", "add_device "+j.Device) {
		return
	}
	six := ""
	if j.Family == IPv6 {
		six = "6"
	}
	for _, line := range []string{"count 3", "pkt_size 100", "dst" + six + " " + j.Target.String(), "src" + six + " " + j.Source.String(), "dst_mac " + j.nextHop(),
		fmt.Sprintf("udp_src_min %d", j.ownPort()), fmt.Sprintf("udp_src_max %d", j.ownPort()), "udp_dst_min 51820", "udp_dst_max 51820"} {
		if strings.HasPrefix(line, "src ") {
			line = "src_min " + j.Source.String()
		}
		if !say(j.Device, line) {
			return
		}
	}
	if say("pgctrl", "start") {
		t.did("pktgen", nil)
		settle(ctx, queued)
	}
}

// runNoFloor deletes clsact and with it the floor. No link of the gate is on it.
func runNoFloor(ctx context.Context, j Job, t *tally) {
	t.each("tc qdisc del dev " + j.Device + " clsact") // refused, or not there: the send shows what is left
	j.sendTo(t, j.Target, j.port(9))
	settle(ctx, queued)
}

// runRecreated makes another device of the radio's name and number, on which no program is. It leads where the sender can
// make it lead, which is nowhere outside.
func runRecreated(ctx context.Context, j Job, t *tally) {
	i, err := net.InterfaceByName(j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	if t.each("ip link del "+j.Device, fmt.Sprintf("ip link add %s index %d type dummy", j.Device, i.Index)) && t.each(j.through(j.Device)...) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// script is what a shell in a namespace of the sender's own does with a device: it waits for it, sets it up and sends.
func (j Job) script(device string) string {
	bits := 24
	if j.Family == IPv6 {
		bits = 64
	}
	var octets strings.Builder
	for _, b := range j.Marker {
		fmt.Fprintf(&octets, `\x%02x`, b)
	}
	nodad := ""
	if j.Family == IPv6 {
		nodad = " nodad"
	}
	lines := []string{"for i in $(seq 100); do ip link show dev " + device + " >/dev/null 2>&1 && break; sleep 0.05; done",
		"set -e", j.ip("addr add %s/%d dev %s%s", j.Source, bits, device, nodad), "ip link set " + device + " up",
		j.ip("neigh replace %s lladdr %s dev %s nud permanent", j.elsewhere(), j.nextHop(), device), j.ip("route replace %s dev %s", j.elsewhere(), device),
		// A device that has just come up may drop the first.
		fmt.Sprintf("for i in 1 2 3 4 5; do printf '%s' > /dev/udp/%s/9; sleep 0.2; done", octets.String(), j.elsewhere())}
	return strings.Join(lines, "\n")
}

// scriptTime bounds such a shell.
const scriptTime = 15 * time.Second
