package p2pnode

import (
	"encoding/json"
	"testing"
)

// FuzzParseBlocks: whatever stands in the file, what is read from it can be
// written and read again.
func FuzzParseBlocks(f *testing.F) {
	f.Add([]byte(`[{"peer":"12D3KooWSRYRmzof8CB97fDdse451jbDNSaCVjP6iwofhxexoAtV","reason":"spam"},{"subnet":"192.0.2.0/24","until":"2999-01-01T00:00:00Z"}]`))
	f.Add([]byte(`[{}]`))
	f.Add([]byte(`[{"peer":"x","subnet":"y"}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseBlocks(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(list)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", list, err)
		}
		again, err := parseBlocks(text)
		if err != nil || len(again) != len(list) {
			t.Fatalf("%+v is read again as %+v, %v", list, again, err)
		}
	})
}
