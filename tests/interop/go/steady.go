package main

import (
	"flag"
	"fmt"
	"time"
)

// How long one message may be refused before the run is given up.
const steadyLimit = 60 * time.Second

// steady publishes "steady-0", "steady-1" and so on, each again until it is taken: a producer that lives
// through restarts of what it talks to. It prints every count, so that others can follow it.
func steady(args []string) error {
	flags := flag.NewFlagSet("steady", flag.ExitOnError)
	tcp := flags.String("tcp", "127.0.0.1:4140", "address of the TCP door")
	topic := flags.String("topic", "interop-go", "topic")
	count := flags.Int("count", 1000, "how many messages")
	delay := flags.Duration("delay", 50*time.Millisecond, "delay of each")
	carried.register(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	producer, err := newProducer(*tcp)
	if err != nil {
		return err
	}
	defer producer.Stop()
	refused := 0
	for i := 0; i < *count; i++ {
		body := []byte(fmt.Sprintf("steady-%d", i))
		for begun := time.Now(); ; {
			err := producer.DeferredPublish(*topic, *delay, body)
			if err == nil {
				break
			}
			if time.Since(begun) > steadyLimit {
				return fmt.Errorf("message %d: %w", i, err)
			}
			refused++
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println(i)
	}
	fmt.Printf("ok, %d refused\n", refused)
	return nil
}
