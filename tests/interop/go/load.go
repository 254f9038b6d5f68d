package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/nsqio/go-nsq"
)

// How long nothing may come before a run is over and the rest counts as lost.
const silenceLimit = 30 * time.Second

// targets are the doors to compare, as NAME=HOST:PORT.
type targets []string

func (t *targets) String() string { return strings.Join(*t, " ") }

func (t *targets) Set(value string) error {
	if !strings.Contains(value, "=") {
		return fmt.Errorf("%q is not NAME=HOST:PORT", value)
	}
	*t = append(*t, value)
	return nil
}

type loadOptions struct {
	nsqd, topic        string
	count, size        int
	rate               float64
	delayMin, delayMax time.Duration
	warm               time.Duration
}

// load sends the same load to each target at the same time, each on its own topic, and reports what
// consumers of the one nsqd behind them saw.
func load(args []string) error {
	var doors targets
	var o loadOptions
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	flags.Var(&doors, "target", "NAME=HOST:PORT of a TCP door; repeatable")
	flags.StringVar(&o.nsqd, "nsqd", "127.0.0.1:4150", "nsqd where the messages arrive")
	flags.StringVar(&o.topic, "topic", "load", "first part of the topics' names")
	flags.IntVar(&o.count, "n", 20000, "messages for each target")
	flags.IntVar(&o.size, "size", 500, "bytes of a body")
	flags.Float64Var(&o.rate, "rate", 1000, "messages a second for each target")
	flags.DurationVar(&o.delayMin, "delay-min", time.Second, "shortest delay")
	flags.DurationVar(&o.delayMax, "delay-max", 5*time.Second, "longest delay")
	flags.DurationVar(&o.warm, "warm", 0, "pause between subscribing and the first message")
	asJSON := flags.Bool("json", false, "print JSON lines too, before the table")
	oneByOne := flags.Bool("one-by-one", false, "one target after the other")
	if err := flags.Parse(args); err != nil {
		return err
	}
	reports := make([]report, len(doors))
	errs := make([]error, len(doors))
	var group sync.WaitGroup
	for i, door := range doors {
		group.Add(1)
		run := func(i int, door string) {
			defer group.Done()
			name, address, _ := strings.Cut(door, "=")
			reports[i], errs[i] = loadOne(name, address, o)
		}
		if *oneByOne {
			run(i, door)
		} else {
			go run(i, door)
		}
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if *asJSON {
		for _, r := range reports {
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			fmt.Println(string(line))
		}
	}
	printTable(reports)
	return nil
}

func loadOne(name, address string, o loadOptions) (report, error) {
	seen := newRecord()
	topic := o.topic + "-" + name
	consumer, err := consume(o.nsqd, topic, "load", seen)
	if err != nil {
		return report{}, fmt.Errorf("%s: %w", name, err)
	}
	defer consumer.Stop()
	time.Sleep(o.warm)
	producer, err := newProducer(address)
	if err != nil {
		return report{}, err
	}
	defer producer.Stop()
	acknowledged, err := send(producer, topic, o)
	if err != nil {
		return report{}, fmt.Errorf("%s: %w", name, err)
	}
	seen.wait(len(acknowledged), silenceLimit)
	return seen.report(name, acknowledged, nil), nil
}

// send publishes at an even rate, without waiting for an answer before the next, and returns the
// numbers of what was acknowledged.
func send(producer *nsq.Producer, topic string, o loadOptions) (map[int]bool, error) {
	done := make(chan *nsq.ProducerTransaction, o.count)
	random := rand.New(rand.NewSource(1))
	start := time.Now()
	for i := 0; i < o.count; i++ {
		time.Sleep(time.Until(start.Add(time.Duration(float64(i) / o.rate * float64(time.Second)))))
		span := (o.delayMax - o.delayMin).Milliseconds()
		delay := o.delayMin + time.Duration(random.Int63n(span+1))*time.Millisecond
		body := stamp(i, time.Now(), delay, o.size)
		if err := producer.DeferredPublishAsync(topic, delay, body, done, i); err != nil {
			return nil, err
		}
	}
	acknowledged := map[int]bool{}
	for i := 0; i < o.count; i++ {
		answer := <-done
		if answer.Error != nil {
			return nil, answer.Error
		}
		acknowledged[answer.Args[0].(int)] = true
	}
	return acknowledged, nil
}

func printTable(reports []report) {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "door\tacknowledged\tdelivered\tlost\tearly\tduplicate\tp50 ms\tp99 ms\tmax ms\t")
	for _, r := range reports {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%.1f\t%.1f\t%.1f\t\n", r.Name, r.Acknowledged,
			r.Delivered, r.Lost, r.Early, r.Duplicate, r.P50, r.P99, r.Max)
	}
	table.Flush()
}
