package report

import (
	"math"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/watch"
	"rempart/tools/sound"
)

// sample is a summary of a run in which every promise was kept.
func sample() *Summary {
	start := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	var points []watch.Point
	for i := range 600 {
		at := start.Add(time.Duration(i) * 20 * time.Millisecond)
		points = append(points, watch.Point{At: at, Interface: "a", Class: "tunnel", Direction: watch.Out, Size: 250},
			watch.Point{At: at.Add(7 * time.Millisecond), Interface: "a", Class: "tunnel", Direction: watch.In, Size: 250})
		if i%100 == 0 {
			points = append(points, watch.Point{At: at, Interface: "a", Class: "tunnel", Direction: watch.Out, Size: 190})
		}
	}
	shape := watch.ShapeOf(points, func(p watch.Point) bool { return p.Direction == watch.Out })
	outside := &Outside{Shape: &shape, Window: "during the call", Points: points, Summary: watch.Summary{Interfaces: []string{"a", "b", "gateway"},
		Frames: 1212, Ended: true, Classes: []watch.ClassCount{
			{Class: "tunnel", Direction: watch.In, Frames: 600, Bytes: 150000, Sizes: []watch.SizeCount{{Size: 250, Frames: 600}}},
			{Class: "tunnel", Direction: watch.Out, Frames: 606, Bytes: 151140, Sizes: []watch.SizeCount{{Size: 190, Frames: 6}, {Size: 250, Frames: 600}}}}}}
	handset := func(name, role string) Handset {
		return Handset{Name: name, Role: role, LogReplays: true, Predicted: true,
			TPM: TPM{Manufacturer: "swtpm 0.7.3", EKIssuer: "CN=lab TPM maker", Vault: "capped", Tries: 5, Keys: []Key{
				{Name: "LDevID", Kind: "ECDSA P-256", Where: "in the TPM", Print: "CN=" + name}, {Name: "tunnel key", Kind: "X25519", Where: "sealed"}}},
			Measured: []Measurement{{13, "egressd", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}, {13, "policy", "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"}},
			Gate:     Gate{Device: "wwan0", Floor: true, InForce: true, Policy: "admitted: gateway", Classes: []string{"udp 51820 tunnel"}, Passed: 1212, Drops: map[string]uint64{"wrong-cgroup": 42, "not-ip": 0, "floor": 7}},
			Tunnel:   Tunnel{State: "up", Peer: "gateway", Endpoint: "203.0.113.1:51820", Handshake: 12.3, RX: 123456, TX: 234567},
			Boot: []Step{{"floor", 0, 1.2, true, ""}, {"gate, deny all, read back", 1.2, 22, true, ""}, {"measured", 23, 61, true, ""},
				{"vault opened", 84, 240, true, ""}, {"gateways admitted", 324, 9, true, ""}, {"tunnel up", 333, 31, true, ""}}}
	}
	wave := sound.Clip{Rate: sound.Rate, Samples: make([]float64, 4*sound.Rate)}
	for i := range wave.Samples {
		t := float64(i) / sound.Rate
		wave.Samples[i] = 0.4 * math.Abs(math.Sin(2*t)) * math.Sin(2*math.Pi*200*t) * math.Abs(math.Sin(9*t))
	}
	way := Way{From: "a", To: "b", OneWayMS: 61.4, BoundMS: 80, Sent: 500, Received: 500, PacketBytes: 160, Correlation: 0.97, BitExact: true,
		Quality: &sound.Quality{SentLevel: -20, ReceivedLevel: -20.4, SNR: 14.2, SegmentalSNR: 12.1, SpectralSNR: 19.7, Score: 66, Active: 320}}
	way.Wave(wave, wave, sound.Alignment{}, 700)
	back := way
	back.From, back.To, back.OneWayMS = "b", "a", 63
	leaks := &scenario.LeakReport{Version: 1, Passed: true, Seconds: 12, Failures: []string{}}
	for _, r := range []struct {
		name    string
		verdict scenario.Verdict
		detail  string
	}{{"UDP from red, IPv4", scenario.Tunnelled, "3 packets"}, {"AF_PACKET on the radio from black, IPv6", scenario.Refused, "EPERM"}, {"UDP from black, IPv4", scenario.Dropped, "wrong-cgroup"},
		{"kill -9 of init while another process holds black and sends", scenario.Dropped, "floor"}} {
		leaks.Rows = append(leaks.Rows, scenario.RowResult{Name: r.name, Verdict: r.verdict, Detail: r.detail, State: scenario.Held, Sent: 3,
			Layers: []scenario.Layer{scenario.Gate, scenario.Floor}, Twin: scenario.TwinResult{Verdict: scenario.Leaked, Seen: 3}})
	}
	boots := make([]float64, 20)
	for i := range boots {
		boots[i] = 0.36 + 0.02*math.Sin(float64(i*i))
	}
	s := &Summary{Made: start, Machine: "Linux 6.18, 2 processors", Seconds: 41.2, Steps: []Step{{"build", 0, 900, true, "8 binaries"}, {"handset a up", 900, 420, true, "tunnel to gateway"}},
		Handsets: []Handset{handset("a", "handset"), handset("b", "handset"), handset("gateway", "gateway")}, Leaks: leaks, Outside: outside,
		Call: &Call{From: "a", To: "b", Level: "restricted", SASFrom: "K7QM", SASTo: "K7QM", Seconds: 10, Codec: "Opus, constant bit rate, 20 ms", DialToMS: 412, Ways: []Way{way, back}},
		Statistics: []Statistic{NewStatistic("init's first line to tunnel up", "s", boots, "p95", 1, false),
			NewStatistic("TCP against plain wireguard-go", "", []float64{0.95, 0.97, 0.96, 0.99, 1.01}, "median", 0.9, true)}}
	return s
}
