package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"github.com/nsqio/go-nsq"
)

// Twice the longest message that nsqd and nsqdelayd take by default.
const tooLongBytes = 2 << 20

// transport says what a producer asks for beside the plain protocol.
type transport struct {
	ca, secret      string
	snappy, deflate bool
}

// How producers are made from here on; set once, by the flags.
var carried transport

func (t *transport) register(flags *flag.FlagSet) {
	flags.StringVar(&t.ca, "tls-ca", "", "file of the root to trust; turns TLS on")
	flags.StringVar(&t.secret, "auth", "", "secret for AUTH")
	flags.BoolVar(&t.snappy, "snappy", false, "ask for snappy")
	flags.BoolVar(&t.deflate, "deflate", false, "ask for deflate")
}

func (t *transport) config() (*nsq.Config, error) {
	config := nsq.NewConfig()
	config.Snappy, config.Deflate, config.AuthSecret = t.snappy, t.deflate, t.secret
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", t.ca)
		}
		config.TlsV1, config.TlsConfig = true, &tls.Config{RootCAs: roots}
	}
	return config, nil
}

// newProducer is a producer as every user of go-nsq makes one.
func newProducer(address string) (*nsq.Producer, error) {
	config, err := carried.config()
	if err != nil {
		return nil, err
	}
	producer, err := nsq.NewProducer(address, config)
	if err != nil {
		return nil, err
	}
	producer.SetLogger(log.New(io.Discard, "", 0), nsq.LogLevelError)
	return producer, nil
}

// publish sends in every way that go-nsq has, then what must be refused, and checks the answers.
// Bodies are "pub", "mpub-1", "mpub-2", "dpub", "async-0" to "async-99" and "after-refusal".
func publish(args []string) error {
	flags := flag.NewFlagSet("publish", flag.ExitOnError)
	tcp := flags.String("tcp", "127.0.0.1:4140", "address of the TCP door")
	topic := flags.String("topic", "interop-go", "topic")
	delay := flags.Duration("delay", 200*time.Millisecond, "delay of what is deferred")
	refusals := flags.Bool("refusals", true, "also send what must be refused")
	attempts := flags.Int("attempts", 1, "how often a refusal is asked for whose answer is lost with its connection")
	carried.register(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	producer, err := newProducer(*tcp)
	if err != nil {
		return err
	}
	defer producer.Stop()
	if err := producer.Ping(); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	if err := producer.Publish(*topic, []byte("pub")); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := producer.MultiPublish(*topic, [][]byte{[]byte("mpub-1"), []byte("mpub-2")}); err != nil {
		return fmt.Errorf("multi publish: %w", err)
	}
	if err := producer.DeferredPublish(*topic, *delay, []byte("dpub")); err != nil {
		return fmt.Errorf("deferred publish: %w", err)
	}
	const count = 100
	done := make(chan *nsq.ProducerTransaction, count)
	for i := 0; i < count; i++ {
		body := []byte(fmt.Sprintf("async-%d", i))
		if err := producer.DeferredPublishAsync(*topic, *delay, body, done, i); err != nil {
			return fmt.Errorf("deferred publish async: %w", err)
		}
	}
	for i := 0; i < count; i++ {
		if answer := <-done; answer.Error != nil {
			return fmt.Errorf("deferred publish async %v: %w", answer.Args, answer.Error)
		}
	}
	if *refusals {
		if err := refused(*tcp, *topic, *attempts); err != nil {
			return err
		}
	}
	if err := producer.Publish(*topic, []byte("after-refusal")); err != nil {
		return fmt.Errorf("publish after another connection's refusal: %w", err)
	}
	fmt.Println("ok")
	return nil
}

// refused sends what must be refused, each on its own connection, since a refusal closes it. An nsqd closes
// it with what it has not read of the body, and then the reset may overtake its answer: hence attempts.
func refused(tcp, topic string, attempts int) error {
	cases := []struct {
		name, code string
		send       func(*nsq.Producer) error
	}{
		{"2 MiB", "E_BAD_MESSAGE", func(p *nsq.Producer) error {
			return p.Publish(topic, bytes.Repeat([]byte("x"), tooLongBytes))
		}},
		{"2 MiB deferred", "E_BAD_MESSAGE", func(p *nsq.Producer) error {
			return p.DeferredPublish(topic, time.Second, bytes.Repeat([]byte("x"), tooLongBytes))
		}},
		{"a bad topic", "E_BAD_TOPIC", func(p *nsq.Producer) error {
			return p.Publish("no/topic", []byte("x"))
		}},
		{"a delay of 200 years", "E_INVALID", func(p *nsq.Producer) error {
			return p.DeferredPublish(topic, 200*365*24*time.Hour, []byte("x"))
		}},
	}
	for _, c := range cases {
		var err error
		for attempt := 0; attempt < attempts; attempt++ {
			producer, broken := newProducer(tcp)
			if broken != nil {
				return broken
			}
			err = c.send(producer)
			producer.Stop()
			if !lost(err) {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.code) {
			return fmt.Errorf("%s: wanted %s, got %v", c.name, c.code, err)
		}
		fmt.Printf("%s: %v\n", c.name, err)
	}
	return nil
}

// lost says whether a connection ended without an answer.
func lost(err error) bool {
	var broken *net.OpError
	return errors.Is(err, nsq.ErrNotConnected) || errors.Is(err, nsq.ErrClosing) || errors.Is(err, io.EOF) ||
		errors.As(err, &broken)
}
