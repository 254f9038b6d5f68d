package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"time"

	"github.com/nsqio/go-nsq"
)

const (
	// How often a message is tried before the run has failed.
	triesMax = 1000
	// The pause after nobody could be reached.
	retryPause = 20 * time.Millisecond
)

// addresses are doors of which any will do.
type addresses []string

func (a *addresses) String() string { return fmt.Sprint(*a) }

func (a *addresses) Set(value string) error {
	*a = append(*a, value)
	return nil
}

// attempt is one message on its way.
type attempt struct {
	number, door, tries int
	delay               time.Duration
	body                []byte
}

// produce sends a load over one or several doors in turn, as a producer that has to get rid of its
// messages does: what is not acknowledged is sent again, at the next door. It ends when all is
// acknowledged, and prints how much was sent again.
func produce(args []string) error {
	var doors addresses
	flags := flag.NewFlagSet("produce", flag.ExitOnError)
	flags.Var(&doors, "tcp", "HOST:PORT of a TCP door; repeatable")
	topic := flags.String("topic", "produce", "topic")
	count := flags.Int("n", 20000, "messages")
	first := flags.Int("first", 0, "number of the first message")
	size := flags.Int("size", 200, "bytes of a body")
	rate := flags.Float64("rate", 1000, "messages a second")
	delayMin := flags.Duration("delay-min", 0, "shortest delay; without one, messages are published at once")
	delayMax := flags.Duration("delay-max", 0, "longest delay")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var producers []*nsq.Producer
	for _, door := range doors {
		producer, err := newProducer(door)
		if err != nil {
			return err
		}
		defer producer.Stop()
		producers = append(producers, producer)
	}
	done := make(chan *nsq.ProducerTransaction, *count)
	random := rand.New(rand.NewSource(1))
	span := (*delayMax - *delayMin).Milliseconds()
	begin := func(a *attempt) error {
		for ; a.tries < triesMax; a.tries++ {
			var err error
			producer := producers[a.door%len(producers)]
			if *delayMax == 0 {
				err = producer.PublishAsync(*topic, a.body, done, a)
			} else {
				err = producer.DeferredPublishAsync(*topic, a.delay, a.body, done, a)
			}
			if err == nil {
				return nil
			}
			a.door++
			if a.tries%len(producers) == len(producers)-1 {
				time.Sleep(retryPause)
			}
		}
		return fmt.Errorf("message %d: nobody takes it", a.number)
	}
	acknowledged, again := 0, 0
	settle := func(t *nsq.ProducerTransaction) error {
		if t.Error == nil {
			acknowledged++
			return nil
		}
		a := t.Args[0].(*attempt)
		again++
		a.door++
		a.tries++
		return begin(a)
	}
	start := time.Now()
	for i := 0; i < *count; i++ {
		time.Sleep(time.Until(start.Add(time.Duration(float64(i) / *rate * float64(time.Second)))))
		delay := *delayMin + time.Duration(random.Int63n(span+1))*time.Millisecond
		number := *first + i
		a := &attempt{number: number, door: i, delay: delay}
		a.body = stamp(number, time.Now(), delay, *size)
		if err := begin(a); err != nil {
			return err
		}
		for pending := true; pending; {
			select {
			case t := <-done:
				if err := settle(t); err != nil {
					return err
				}
			default:
				pending = false
			}
		}
	}
	for acknowledged < *count {
		if err := settle(<-done); err != nil {
			return err
		}
	}
	line, err := json.Marshal(map[string]any{
		"acknowledged": acknowledged,
		"again":        again,
		"seconds":      time.Since(start).Seconds(),
	})
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return nil
}
