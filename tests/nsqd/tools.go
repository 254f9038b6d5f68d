//go:build tools

// Package nsqtools names the commands that this module pins, so that `go mod tidy` keeps their sums.
package nsqtools

import (
	_ "github.com/nsqio/nsq/apps/nsqd"
	_ "github.com/nsqio/nsq/apps/nsqlookupd"
)
