//go:build race

package raced

// Detector is whether the race detector is on.
const Detector = true
