package simhost

import (
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// TestMain fails the suite when a goroutine outlives it.
func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}
