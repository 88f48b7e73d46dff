package p2pnode

// Rendezvous is a namespace of [WithRendezvous].
type Rendezvous struct {
	Namespace string `json:"namespace"`
	// Peers is how many are kept connected.
	Peers int `json:"peers"`
}
