package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Hand-overs that are not measured, as in the Rust program.
const (
	warmUpOfPair = 3
	warmUpOfHerd = 5
)

// locker takes locks as one process does: with connections of its own and a session that is kept.
type locker struct {
	client  *api.Client
	session string
}

func newLocker(j job) (*locker, error) {
	client, err := connect(j)
	if err != nil {
		return nil, err
	}
	// What the client's Lock makes by itself, but longer than any measurement: nobody renews it.
	entry := &api.SessionEntry{TTL: "300s", LockDelay: 10 * time.Second}
	session, _, err := client.Session().Create(entry, nil)
	return &locker{client, session}, err
}

func (l *locker) lock(key string) (*api.Lock, error) {
	lock, err := l.client.LockOpts(&api.LockOptions{Key: key, Session: l.session})
	if err != nil {
		return nil, err
	}
	_, err = lock.Lock(nil)
	return lock, err
}

func cleanHandover(j job) (sample, error) {
	holder, err := newLocker(j)
	if err != nil {
		return nil, err
	}
	next, err := newLocker(j)
	if err != nil {
		return nil, err
	}
	lock, err := holder.lock(j.Key)
	if err != nil {
		return nil, err
	}
	type taken struct {
		at   time.Time
		lock *api.Lock
		err  error
	}
	var times []time.Duration
	cpu := cpuTime()
	for turn := 0; turn < warmUpOfPair+int(j.AtLeast); turn++ {
		if turn == warmUpOfPair {
			times, cpu = nil, cpuTime()
		}
		waiting := make(chan taken, 1)
		go func(next *locker) {
			lock, err := next.lock(j.Key)
			waiting <- taken{time.Now(), lock, err}
		}(next)
		time.Sleep(time.Duration(j.HoldMs) * time.Millisecond)
		released := time.Now()
		if err := lock.Unlock(); err != nil {
			return nil, err
		}
		held := <-waiting
		if held.err != nil {
			return nil, held.err
		}
		times = append(times, held.at.Sub(released))
		lock = held.lock
		holder, next = next, holder
	}
	cpu = cpuTime() - cpu
	return handOvers(j, times, cpu), lock.Unlock()
}

func handOvers(j job, times []time.Duration, cpu time.Duration) sample {
	slices.Sort(times)
	return sample{
		"p50_us":                     quantile(times, 0.5),
		"p99_us":                     quantile(times, 0.99),
		"client_cpu_us_per_handover": micros(cpu) / float64(max(j.AtLeast, 1)),
	}
}

func lockCycle(j job) (sample, error) {
	one, err := newLocker(j)
	if err != nil {
		return nil, err
	}
	cycle := func(number int) func(int) error {
		key := fmt.Sprintf("%s/%02d", j.Key, number)
		return func(int) error {
			lock, err := one.lock(key)
			if err != nil {
				return err
			}
			return lock.Unlock()
		}
	}
	if j.MeasuredMs > 0 {
		return closedLoop(j, cycle)
	}
	once := cycle(0)
	_, _, err = oneAfterTheOther(func() error { return once(0) }, j.AtLeast, 0)
	return sample{}, err
}

func herd(j job) (sample, error) {
	var mutex sync.Mutex
	var released time.Time
	var times []time.Duration
	held, total := 0, 1+warmUpOfHerd+int(j.AtLeast)
	changed := sync.NewCond(&mutex)
	// Told at the beginning and the end of what is measured.
	marks := make(chan struct{}, 2)
	failures := make(chan error, j.Concurrency)
	lockers := make([]*locker, j.Concurrency)
	for number := range lockers {
		var err error
		if lockers[number], err = newLocker(j); err != nil {
			return nil, err
		}
	}
	contend := func(one *locker) error {
		for {
			lock, err := one.lock(j.Key)
			if err != nil {
				return err
			}
			at := time.Now()
			mutex.Lock()
			if !released.IsZero() {
				times = append(times, at.Sub(released))
			}
			held++
			mine := held
			switch held {
			case 1 + warmUpOfHerd:
				times = nil
				marks <- struct{}{}
			case total:
				marks <- struct{}{}
			}
			changed.Broadcast()
			mutex.Unlock()
			if mine >= total {
				// The measurement is over, and with it the program.
				return nil
			}
			time.Sleep(time.Duration(j.HoldMs) * time.Millisecond)
			mutex.Lock()
			released = time.Now()
			mutex.Unlock()
			if err := lock.Unlock(); err != nil {
				return err
			}
			mutex.Lock()
			for held == mine {
				changed.Wait()
			}
			mutex.Unlock()
		}
	}
	for _, one := range lockers {
		go func() {
			if err := contend(one); err != nil {
				failures <- err
			}
		}()
	}
	mark := func() (uint64, error) {
		select {
		case <-marks:
			return raftIndex(lockers[0].client)
		case err := <-failures:
			return 0, err
		}
	}
	before, err := mark()
	if err != nil {
		return nil, err
	}
	cpu := cpuTime()
	after, err := mark()
	if err != nil {
		return nil, err
	}
	cpu = cpuTime() - cpu
	mutex.Lock()
	defer mutex.Unlock()
	measured := handOvers(j, times, cpu)
	measured["writes_per_handover"] = float64(after-before) / float64(max(j.AtLeast, 1))
	return measured, nil
}

// raftIndex is how many entries the servers' log has.
func raftIndex(client *api.Client) (uint64, error) {
	self, err := client.Agent().Self()
	if err != nil {
		return 0, err
	}
	raft, _ := self["Stats"]["raft"].(map[string]interface{})
	index, _ := raft["applied_index"].(string)
	return strconv.ParseUint(index, 10, 64)
}

// crashHandover holds until it is killed, or says that it waits and then when it holds.
func crashHandover(j job) error {
	client, err := connect(j)
	if err != nil {
		return err
	}
	lock, err := client.LockKey(j.Key)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if j.Role == "contender" {
		if err := out.Encode(0); err != nil {
			return err
		}
	}
	if _, err := lock.Lock(nil); err != nil {
		return err
	}
	at, err := monotonic()
	if err != nil {
		return err
	}
	if err := out.Encode(at); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return lock.Unlock()
}
