package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	demoMessages  = 1000
	demoCancelled = 100
	demoBodyBytes = 200
	// Half of the demo's messages are due within this time, the other half within the longer one.
	demoDelayShort = 500 * time.Millisecond
	demoDelayLong  = 8 * time.Second
)

// demo publishes messages with mixed delays, cancels some of them, consumes from nsqd and says what
// came. Those to be cancelled go in over JSON, whose answer names the id; the rest over go-nsq.
func demo(args []string) error {
	flags := flag.NewFlagSet("demo", flag.ExitOnError)
	tcp := flags.String("tcp", "127.0.0.1:4140", "nsqdelayd's TCP address")
	httpAddress := flags.String("http", "127.0.0.1:4141", "nsqdelayd's HTTP address")
	nsqd := flags.String("nsqd", "127.0.0.1:4150", "nsqd's TCP address")
	if err := flags.Parse(args); err != nil {
		return err
	}
	topic := "demo-" + strconv.FormatInt(time.Now().UnixMilli(), 36)
	seen := newRecord()
	consumer, err := consume(*nsqd, topic, "demo#ephemeral", seen)
	if err != nil {
		return fmt.Errorf("no nsqd at %s (%w): start one with `make run`", *nsqd, err)
	}
	defer consumer.Stop()

	fmt.Printf("publishing %d messages with delays of 0 to %v to topic %s\n", demoMessages, demoDelayLong, topic)
	acknowledged, ids, err := demoPublish(*tcp, *httpAddress, topic)
	if err != nil {
		return err
	}
	cancelled := map[int]bool{}
	for number, id := range ids {
		done, err := cancel(*httpAddress, id)
		if err != nil {
			return err
		}
		if done {
			cancelled[number] = true
		}
	}
	fmt.Printf("cancelled %d of them; waiting for the others\n", len(cancelled))
	// A cancelled message that came all the same would come by its due time.
	time.Sleep(demoDelayLong)
	seen.wait(demoMessages-len(cancelled), silenceLimit)
	r := seen.report("demo", acknowledged, cancelled)
	fmt.Println()
	for _, line := range []struct {
		what  string
		value any
	}{
		{"delivered", r.Delivered},
		{"cancelled", r.Cancelled},
		{"cancelled, but delivered", r.Unexpected},
		{"lost", r.Lost},
		{"early", r.Early},
		{"duplicate", r.Duplicate},
		{"lateness p50", fmt.Sprintf("%.1f ms", r.P50)},
		{"lateness p99", fmt.Sprintf("%.1f ms", r.P99)},
	} {
		fmt.Printf("%26s  %v\n", line.what, line.value)
	}
	if r.Lost+r.Early+r.Unexpected > 0 || r.Cancelled != demoCancelled {
		return fmt.Errorf("that is not what was promised")
	}
	return nil
}

// demoPublish answers with what was acknowledged and the ids of what is to be cancelled.
func demoPublish(tcp, httpAddress, topic string) (map[int]bool, map[int]string, error) {
	producer, err := newProducer(tcp)
	if err != nil {
		return nil, nil, err
	}
	defer producer.Stop()
	if err := producer.Ping(); err != nil {
		return nil, nil, fmt.Errorf("no nsqdelayd at %s (%w): start one with `make run`", tcp, err)
	}
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	acknowledged := map[int]bool{}
	ids := map[int]string{}
	var mu sync.Mutex
	var group sync.WaitGroup
	var failure error
	// A few at a time: go-nsq's blocking call waits for each answer.
	slots := make(chan struct{}, 32)
	for number := 0; number < demoMessages; number++ {
		longest := demoDelayShort
		if number%2 == 0 {
			longest = demoDelayLong
		}
		delay := time.Duration(random.Int63n(longest.Milliseconds()+1)) * time.Millisecond
		toCancel := number < demoCancelled
		if toCancel {
			// Late enough that the cancel comes first.
			delay = demoDelayLong
		}
		slots <- struct{}{}
		group.Add(1)
		go func(number int) {
			defer group.Done()
			defer func() { <-slots }()
			body := stamp(number, time.Now(), delay, demoBodyBytes)
			var id string
			var err error
			if toCancel {
				id, err = create(httpAddress, topic, delay, body)
			} else {
				err = producer.DeferredPublish(topic, delay, body)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failure = err
				return
			}
			acknowledged[number] = true
			if toCancel {
				ids[number] = id
			}
		}(number)
	}
	group.Wait()
	return acknowledged, ids, failure
}

// create publishes over JSON and returns the message's id.
func create(address, topic string, delay time.Duration, body []byte) (string, error) {
	request, err := json.Marshal(map[string]any{
		"topic": topic, "body": string(body), "delay_ms": delay.Milliseconds(),
	})
	if err != nil {
		return "", err
	}
	answer, err := http.Post("http://"+address+"/v1/messages", "application/json", bytes.NewReader(request))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("POST /v1/messages: %d %s", answer.StatusCode, text)
	}
	var created struct {
		ID string `json:"id"`
	}
	return created.ID, json.Unmarshal(text, &created)
}

// cancel says whether the message was cancelled.
func cancel(address, id string) (bool, error) {
	request, err := http.NewRequest(http.MethodDelete, "http://"+address+"/v1/messages/"+url.PathEscape(id), nil)
	if err != nil {
		return false, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return false, err
	}
	return answer.StatusCode == http.StatusOK, nil
}
