package topic_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/topic"
)

// Temperature is what the sensors of a building publish.
type Temperature struct {
	Room    string  `json:"room"`
	Celsius float64 `json:"celsius"`
}

func plausible(_ context.Context, m topic.Message[Temperature]) error {
	if m.Value.Celsius < -273.15 {
		return errors.New("it is colder than possible")
	}
	return nil
}

// A display shows what a sensor measures; both check that it is possible.
func Example() {
	run := func(ctx context.Context) error {
		loopback := p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0")
		display, err := p2pnode.New(ctx, loopback)
		if err != nil {
			return err
		}
		defer display.Close()
		sensor, err := p2pnode.New(ctx, loopback, p2pnode.WithBootstrapPeers(display.AddrInfo()))
		if err != nil {
			return err
		}
		defer sensor.Close()

		shown, err := topic.Join(display, "temperatures", topic.JSON[Temperature](), topic.Validate(plausible), topic.MaxSize(1000))
		if err != nil {
			return err
		}
		sub, err := shown.Subscribe(ctx)
		if err != nil {
			return err
		}
		measured, err := topic.Join(sensor, "temperatures", topic.JSON[Temperature](), topic.Validate(plausible))
		if err != nil {
			return err
		}
		err = measured.Publish(ctx, Temperature{"kitchen", -300})
		fmt.Println(err)
		if err := measured.Publish(ctx, Temperature{"kitchen", 21.5}); err != nil {
			return err
		}
		m, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%.1f °C in the %s\n", m.Value.Celsius, m.Value.Room)
		return nil
	}
	if err := run(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// p2pnode: publish to "temperatures": message refused by a validator: it is colder than possible
	// 21.5 °C in the kitchen
}
