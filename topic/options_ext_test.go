package topic_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
	"github.com/go-p2pnode/p2pnode/topic"
	"github.com/go-p2pnode/p2pnode/topic/cborcodec"
	"github.com/go-p2pnode/p2pnode/topic/protocodec"
)

// What fits.
var (
	_ topic.Node = (*p2pnode.Node)(nil)
	_ topic.Node = (*p2ptest.Node)(nil)

	_ topic.Codec[int]                    = cborcodec.New[int]()
	_ topic.Codec[*timestamppb.Timestamp] = protocodec.New[timestamppb.Timestamp]()
)

// noNode is a node whose topics cannot be joined.
type noNode struct{}

var errNoNode = errors.New("no node")

func (noNode) Topic(string, ...p2pnode.TopicOption) (*p2pnode.Topic, error) { return nil, errNoNode }

type greeting struct {
	From string `json:"from"`
	Text string `json:"text"`
}

func fine(context.Context, topic.Message[greeting]) error { return nil }

func TestOptionsThatAreInvalid(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		names string // of the options in the errors
		opts  []topic.Option
	}{
		{"MaxSize", []topic.Option{topic.MaxSize(0)}},
		{"Validate", []topic.Option{topic.Validate[greeting](nil)}},
		{"Validate", []topic.Option{topic.Validate(func(context.Context, topic.Message[int]) error { return nil })}},
		{"VersionInName", []topic.Option{topic.VersionInName(0)}},
		{"VersionInEnvelope", []topic.Option{topic.VersionInEnvelope(0)}},
		{"VersionInEnvelope", []topic.Option{topic.VersionInEnvelope(2, 1, 0)}},
		{"VersionInEnvelope", []topic.Option{topic.VersionInEnvelope(2, 1, 2)}},
		{"VersionInEnvelope", []topic.Option{topic.VersionInEnvelope(2), topic.VersionInName(2)}},
		{"MaxSize VersionInName", []topic.Option{topic.MaxSize(-1), topic.VersionInName(0)}},
	} {
		_, err := topic.Join(noNode{}, "news", topic.JSON[greeting](), row.opts...)
		var names []string
		for _, o := range p2pnode.OptionErrors(err) {
			names = append(names, o.Option)
		}
		if strings.Join(names, " ") != row.names || !strings.HasPrefix(err.Error(), `topic: join "news": `) {
			t.Errorf("want errors of %s, have %v", row.names, err)
		}
	}
	if _, err := topic.Join[int](noNode{}, "news", nil); err == nil || errors.Is(err, errNoNode) {
		t.Errorf("without a codec: %v", err)
	}
}

func TestOptionsThatAreValid(t *testing.T) {
	t.Parallel()
	also := []uint64{1}
	for _, opts := range [][]topic.Option{
		nil,
		{nil, topic.With(), topic.With(nil)},
		{topic.MaxSize(1), topic.Validate(fine), topic.Validate(fine, nil, p2pnode.ValidatorInOrder())},
		{topic.VersionInEnvelope(3, also...), topic.VersionInEnvelope(2)},
		{topic.VersionInName(3)},
	} {
		if _, err := topic.Join(noNode{}, "news", topic.JSON[greeting](), opts...); !errors.Is(err, errNoNode) {
			t.Errorf("%d options: %v", len(opts), err)
		}
	}
}
