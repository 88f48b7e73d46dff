package natlab

import "testing"

// What [Punchable] derives from the table is what the books say.
func TestWhatCanBePunched(t *testing.T) {
	for _, tt := range []struct {
		a, b     Kind
		udp, tcp bool
	}{
		{PortRestricted, PortRestricted, true, true},
		{Symmetric, Symmetric, false, false},
		{Symmetric, PortRestricted, false, false},
		{Symmetric, NoIncoming, false, false},
		{Symmetric, DoubleNAT, false, false},
		{Symmetric, AddressRestricted, true, true},
		{Symmetric, FullCone, true, true},
		{Symmetric, Public, true, true},
		{NoUDP, PortRestricted, false, true},
		{NoUDP, Symmetric, false, false},
		{NoUDP, Public, false, true},
	} {
		for _, pair := range [][2]Kind{{tt.a, tt.b}, {tt.b, tt.a}} {
			udp, tcp := Punchable(pair[0], pair[1], UDP), Punchable(pair[0], pair[1], TCP)
			if udp != tt.udp || tcp != tt.tcp || Direct(pair[0], pair[1]) != (tt.udp || tt.tcp) {
				t.Errorf("%s × %s: UDP %v, TCP %v", pair[0], pair[1], udp, tcp)
			}
		}
	}
}
