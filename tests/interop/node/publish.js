// Publishes with nsqjs, of which only the address is changed.
// usage: node publish.js HOST PORT TOPIC DELAY_MS [tls] [deflate] [auth=SECRET]; bodies are "pub", "mpub-1", "mpub-2", "dpub-0" to "dpub-9".
'use strict'
const nsq = require('nsqjs')

const [host, port, topic, delay, ...words] = process.argv.slice(2)
const options = {}
for (const word of words) {
  const [name, value] = word.split('=')
  if (name === 'tls') Object.assign(options, { tls: true, tlsVerification: false })
  else if (name === 'auth') options.authSecret = value
  else options[name] = true
}
const writer = new nsq.Writer(host, Number(port), options)

const call = (method, ...args) =>
  new Promise((resolve, reject) => writer[method](...args, (error) => (error ? reject(error) : resolve())))

writer.on('ready', async () => {
  try {
    await call('publish', topic, 'pub')
    await call('publish', topic, ['mpub-1', 'mpub-2'])
    for (let i = 0; i < 10; i++) await call('deferPublish', topic, [`dpub-${i}`], Number(delay))
    console.log('ok')
    writer.close()
  } catch (error) {
    console.error(error)
    process.exitCode = 1
    writer.close()
  }
})
writer.on('error', (error) => {
  console.error(error)
  process.exit(1)
})
writer.connect()
