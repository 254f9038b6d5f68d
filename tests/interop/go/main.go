// Command interop drives nsqdelayd with the official Go client of NSQ, of which only the address is
// changed: once through every way to publish, as a measured load, as a load that lives through
// restarts, and as the demo.
package main

import (
	"fmt"
	"os"
)

const usage = `usage:
  interop publish -tcp HOST:PORT -topic T        every way to publish of go-nsq, then what must fail
  interop steady  -tcp HOST:PORT -topic T        one message after the other, each until it is taken
  interop load    -target NAME=HOST:PORT ...     a load of DPUB; lost, early, duplicate, lateness
  interop produce -tcp HOST:PORT ...             a load that is sent again until it is acknowledged
  interop demo    -tcp ... -http ... -nsqd ...   1,000 messages, 100 of them cancelled
`

func main() {
	commands := map[string]func([]string) error{
		"publish": publish,
		"steady":  steady,
		"load":    load,
		"produce": produce,
		"demo":    demo,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}
