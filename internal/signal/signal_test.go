package signal

import "testing"

func TestNotifyWakesEveryWaiterOnce(t *testing.T) {
	var s Signal
	s.Notify() // nobody waits: no effect on those who come later
	a, b := s.Wait(), s.Wait()
	select {
	case <-a:
		t.Fatal("woken by a Notify from before the Wait")
	default:
	}
	s.Notify()
	<-a
	<-b
	select {
	case <-s.Wait():
		t.Fatal("a new waiter is woken by an old Notify")
	default:
	}
}
