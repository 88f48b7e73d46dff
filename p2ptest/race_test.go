//go:build race

package p2ptest_test

const raceDetector = true
