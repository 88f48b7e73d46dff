//go:build race

package p2pnode_test

const raceDetector = true
