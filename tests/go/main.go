// The reference Go client as the other side of the tests in tests/interop: it takes a lock or a place
// of a semaphore, says so in lines, and gives it back when its standard input ends. Or it makes the
// calls that it is told, see calls.go.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

func main() {
	if len(os.Args) == 3 && os.Args[2] == "calls" {
		config := api.DefaultConfig()
		config.Address = os.Args[1]
		if err := calls(config); err != nil {
			fail(err)
		}
		return
	}
	if len(os.Args) != 6 {
		fail(fmt.Errorf("usage: ADDRESS lock|try-lock|semaphore|try-semaphore NAME LIMIT VALUE"))
	}
	limit, err := strconv.Atoi(os.Args[4])
	if err != nil {
		fail(err)
	}
	config := api.DefaultConfig()
	config.Address = os.Args[1]
	client, err := api.NewClient(config)
	if err != nil {
		fail(err)
	}
	if err := run(client, os.Args[2], os.Args[3], limit, os.Args[5]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// How long a try waits: the client tries once, however short it is.
const try = 100 * time.Millisecond

func run(client *api.Client, kind, name string, limit int, value string) error {
	entry := &api.SessionEntry{TTL: "60s", Behavior: api.SessionBehaviorRelease}
	if kind == "semaphore" || kind == "try-semaphore" {
		// As the client has it for a session that it makes itself.
		entry.Behavior = api.SessionBehaviorDelete
	}
	session, _, err := client.Session().Create(entry, nil)
	if err != nil {
		return err
	}
	defer func() { _, _ = client.Session().Destroy(session, nil) }()
	fmt.Println(session)

	var take func(<-chan struct{}) (<-chan struct{}, error)
	var giveBack func() error
	switch kind {
	case "lock", "try-lock":
		options := &api.LockOptions{Key: name, Value: []byte(value), Session: session}
		if kind == "try-lock" {
			options.LockTryOnce, options.LockWaitTime = true, try
		}
		lock, err := client.LockOpts(options)
		if err != nil {
			return err
		}
		take, giveBack = lock.Lock, lock.Unlock
	case "semaphore", "try-semaphore":
		options := &api.SemaphoreOptions{
			Prefix: name, Limit: limit, Value: []byte(value), Session: session,
		}
		if kind == "try-semaphore" {
			options.SemaphoreTryOnce, options.SemaphoreWaitTime = true, try
		}
		semaphore, err := client.SemaphoreOpts(options)
		if err != nil {
			return err
		}
		take, giveBack = semaphore.Acquire, semaphore.Release
	default:
		return fmt.Errorf("no %s", kind)
	}

	lost, err := take(nil)
	if err != nil {
		return err
	}
	if lost == nil {
		fmt.Println("refused")
		return nil
	}
	fmt.Println("holds")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	select {
	case <-lost:
		return fmt.Errorf("lost before it was given back")
	default:
	}
	return giveBack()
}
