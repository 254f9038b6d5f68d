package main

import (
	"fmt"
	"io"
	"log"
	"math"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nsqio/go-nsq"
)

// stamp makes a body that says all that a check needs: who it is, when its sending began on this
// machine's clock, and its delay. It is filled up to size with dots.
func stamp(number int, sent time.Time, delay time.Duration, size int) []byte {
	head := fmt.Sprintf("%d %d %d ", number, sent.UnixMicro(), delay.Milliseconds())
	if len(head) < size {
		head += strings.Repeat(".", size-len(head))
	}
	return []byte(head)
}

// record is what a consumer saw. All figures come from received bodies.
type record struct {
	mu       sync.Mutex
	copies   map[int]int
	late     []float64 // ms after sending began + delay; below 0 is early
	lastSeen time.Time
}

func newRecord() *record {
	return &record{copies: map[int]int{}, lastSeen: time.Now()}
}

// HandleMessage notes one delivery.
func (r *record) HandleMessage(message *nsq.Message) error {
	now := time.Now()
	fields := strings.Fields(string(message.Body))
	if len(fields) < 3 {
		return nil
	}
	number, err1 := strconv.Atoi(fields[0])
	sent, err2 := strconv.ParseInt(fields[1], 10, 64)
	delay, err3 := strconv.ParseInt(fields[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return nil
	}
	due := time.UnixMicro(sent).Add(time.Duration(delay) * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copies[number]++
	if r.copies[number] == 1 {
		r.late = append(r.late, float64(now.Sub(due).Microseconds())/1000)
	}
	r.lastSeen = now
	return nil
}

// wait returns when the wanted number of different messages is here, or when nothing has come for
// the given time; then for a moment longer, in which a duplicate would come.
func (r *record) wait(wanted int, silence time.Duration) {
	for {
		r.mu.Lock()
		here, last := len(r.copies), r.lastSeen
		r.mu.Unlock()
		quiet := time.Since(last)
		if quiet > silence || (here >= wanted && quiet > 500*time.Millisecond) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// report is the result of one run.
type report struct {
	Name         string  `json:"name"`
	Acknowledged int     `json:"acknowledged"`
	Cancelled    int     `json:"cancelled"`
	Delivered    int     `json:"delivered"`
	Lost         int     `json:"lost"`
	Early        int     `json:"early"`
	Duplicate    int     `json:"duplicate"`
	Unexpected   int     `json:"unexpected"`
	P50          float64 `json:"lateness_ms_p50"`
	P99          float64 `json:"lateness_ms_p99"`
	Max          float64 `json:"lateness_ms_max"`
}

// report compares what came with what was acknowledged, and what must not come.
func (r *record) report(name string, acknowledged, cancelled map[int]bool) report {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := report{Name: name, Acknowledged: len(acknowledged), Cancelled: len(cancelled)}
	for number := range acknowledged {
		if r.copies[number] == 0 && !cancelled[number] {
			out.Lost++
		}
	}
	for number, copies := range r.copies {
		out.Delivered++
		out.Duplicate += copies - 1
		if cancelled[number] {
			out.Unexpected++
		}
	}
	late := append([]float64(nil), r.late...)
	sort.Float64s(late)
	for _, ms := range late {
		if ms < 0 {
			out.Early++
		}
	}
	out.P50, out.P99, out.Max = quantile(late, 0.5), quantile(late, 0.99), quantile(late, 1)
	return out
}

// quantile is the smallest of the sorted values that at least the share q does not exceed.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := int(math.Ceil(q*float64(len(sorted)))) - 1
	if at < 0 {
		at = 0
	}
	return sorted[at]
}

// consume subscribes with nsqd's output buffer off, so that nsqd adds no delay of its own. Both
// settings are needed: without a timeout alone, nsqd waits until the buffer is full.
func consume(nsqd, topic, channel string, r *record) (*nsq.Consumer, error) {
	config := nsq.NewConfig()
	config.OutputBufferTimeout = -1
	config.OutputBufferSize = -1
	config.MaxInFlight = 2500
	consumer, err := nsq.NewConsumer(topic, channel, config)
	if err != nil {
		return nil, err
	}
	consumer.SetLogger(log.New(io.Discard, "", 0), nsq.LogLevelError)
	consumer.AddConcurrentHandlers(r, 4)
	return consumer, consumer.ConnectToNSQD(nsqd)
}
