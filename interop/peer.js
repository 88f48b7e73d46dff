// A js-libp2p peer on the topic "news". It reads commands from standard input
// and writes what happens to standard output, one line each.
import { createInterface } from 'node:readline'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

Promise.withResolvers ??= () => { // Node 20 has none
  const deferred = {}
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), pubsub: gossipsub() }
})
const pubsub = node.services.pubsub
pubsub.subscribe('news')
pubsub.addEventListener('message', ({ detail }) => {
  console.log('heard', new TextDecoder().decode(detail.data))
})
console.log('listens', node.getMultiaddrs()[0].toString())

for await (const line of createInterface({ input: process.stdin })) {
  const [command, argument] = line.split(' ')
  switch (command) {
    case 'publish':
      // Fails without a peer on the topic. The test publishes until one message
      // arrives.
      await pubsub.publish('news', new TextEncoder().encode(argument)).catch(() => {})
      break
    case 'dial': // says the connection's address, or what went wrong
      await node.dial(multiaddr(argument)).then(
        connection => console.log('dialed', connection.remoteAddr.toString()),
        err => console.log('dialed', err.message.replaceAll('\n', ' ')))
      break
    case 'reset': // the pubsub streams of one direction: inbound or outbound
      {
        const streams = node.getConnections().flatMap(c => c.streams)
          .filter(s => s.protocol.startsWith('/meshsub/') && s.direction === argument)
        streams.forEach(s => s.abort(new Error('reset by the test')))
        console.log('reset', streams.length)
      }
      break
  }
}
await node.stop()
