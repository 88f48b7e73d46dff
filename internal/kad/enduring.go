package kad

import (
	"context"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// enduring is a datastore that works after a context has ended. A sweeping
// provider (v0.42) saves its state in Close with a context that it has canceled.
type enduring struct{ datastore.Batching }

func (e enduring) Put(ctx context.Context, key datastore.Key, value []byte) error {
	return e.Batching.Put(context.WithoutCancel(ctx), key, value)
}

func (e enduring) Delete(ctx context.Context, key datastore.Key) error {
	return e.Batching.Delete(context.WithoutCancel(ctx), key)
}

func (e enduring) Query(ctx context.Context, q query.Query) (query.Results, error) {
	return e.Batching.Query(context.WithoutCancel(ctx), q)
}

func (e enduring) Batch(ctx context.Context) (datastore.Batch, error) {
	b, err := e.Batching.Batch(context.WithoutCancel(ctx))
	return enduringBatch{b}, err
}

type enduringBatch struct{ datastore.Batch }

func (b enduringBatch) Put(ctx context.Context, key datastore.Key, value []byte) error {
	return b.Batch.Put(context.WithoutCancel(ctx), key, value)
}

func (b enduringBatch) Delete(ctx context.Context, key datastore.Key) error {
	return b.Batch.Delete(context.WithoutCancel(ctx), key)
}

func (b enduringBatch) Commit(ctx context.Context) error {
	return b.Batch.Commit(context.WithoutCancel(ctx))
}
