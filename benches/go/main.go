// The reference Go client as a contender of the programs control_plane and coordination: the same
// job as JSON in, the same sample as one line of JSON out. Written only against the client's public
// API.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"
)

type job struct {
	Bench       string `json:"bench"`
	Address     string `json:"address"`
	Service     string `json:"service"`
	Key         string `json:"key"`
	Role        string `json:"role"`
	HoldMs      int    `json:"hold_ms"`
	Concurrency int    `json:"concurrency"`
	Readers     int    `json:"readers"`
	WarmUpMs    int    `json:"warm_up_ms"`
	MeasuredMs  int    `json:"measured_ms"`
	AtLeast     uint64 `json:"at_least"`
}

type sample map[string]float64

// The same 120 bytes as in the Rust program.
const value = `{"upstream":"web","timeout_ms":1500,"retries":2,"weights":[1,2,3,4],"comment":"a setting of the size they usually have"}`

const keys = 16

func main() {
	// The arguments are those of a Rust worker: a mode, and the job.
	if len(os.Args) != 3 {
		fail(fmt.Errorf("this program is started by control_plane and coordination"))
	}
	var j job
	if err := json.Unmarshal([]byte(os.Args[2]), &j); err != nil {
		fail(err)
	}
	var measured sample
	var err error
	switch j.Bench {
	case "kv_get", "kv_put":
		measured, err = kv(j)
	case "health_query":
		measured, err = health(j)
	case "watch_update":
		measured, err = watchUpdate(j)
	case "watch_propagation":
		if err = watchPropagation(j); err == nil {
			return
		}
	case "clean_handover":
		measured, err = cleanHandover(j)
	case "lock_cycle":
		measured, err = lockCycle(j)
	case "herd":
		measured, err = herd(j)
	case "crash_handover":
		if err = crashHandover(j); err == nil {
			return
		}
	default:
		err = fmt.Errorf("no bench %s", j.Bench)
	}
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func connect(j job) (*api.Client, error) {
	config := api.DefaultConfig()
	config.Address = j.Address
	return api.NewClient(config)
}

func kv(j job) (sample, error) {
	client, err := connect(j)
	if err != nil {
		return nil, err
	}
	write := j.Bench == "kv_put"
	return closedLoop(j, func(number int) func(turn int) error {
		names := make([]string, keys)
		for key := range keys {
			names[key] = fmt.Sprintf("bench/%02d/setting-%02d", number, key)
		}
		return func(turn int) error {
			key := names[turn%keys]
			if write {
				_, err := client.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil)
				return err
			}
			pair, _, err := client.KV().Get(key, nil)
			if err == nil && (pair == nil || len(pair.Value) != len(value)) {
				err = fmt.Errorf("a wrong value of %s", key)
			}
			return err
		}
	})
}

// closedLoop runs as many loops as the job says, each with an operation of its own.
func closedLoop(j job, operation func(number int) func(turn int) error) (sample, error) {
	var phase atomic.Int32
	var warm, operations atomic.Uint64
	latencies := make([][]time.Duration, j.Concurrency)
	failures := make([]error, j.Concurrency)
	var loops sync.WaitGroup
	for number := range j.Concurrency {
		once := operation(number)
		loops.Add(1)
		go func() {
			defer loops.Done()
			for turn := 0; ; turn++ {
				start := time.Now()
				if failures[number] = once(turn); failures[number] != nil {
					return
				}
				if turn+1 == 3 {
					warm.Add(1)
				}
				switch phase.Load() {
				case 1:
					operations.Add(1)
					latencies[number] = append(latencies[number], time.Since(start))
				case 2:
					return
				}
			}
		}()
	}
	time.Sleep(time.Duration(j.WarmUpMs) * time.Millisecond)
	measured := time.Duration(j.MeasuredMs) * time.Millisecond
	until(10*measured, func() bool { return warm.Load() == uint64(j.Concurrency) })
	cpu, start := cpuTime(), time.Now()
	phase.Store(1)
	time.Sleep(measured)
	until(10*measured, func() bool { return operations.Load() >= j.AtLeast })
	phase.Store(2)
	cpu, wall := cpuTime()-cpu, time.Since(start)
	loops.Wait()
	for _, failure := range failures {
		if failure != nil {
			return nil, failure
		}
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return sample{
		"client_cpu_us_per_op": micros(cpu) / float64(max(len(all), 1)),
		"ops_per_s":            float64(len(all)) / wall.Seconds(),
		"p50_us":               quantile(all, 0.5),
		"p99_us":               quantile(all, 0.99),
	}, nil
}

// until waits as the Rust program does on a machine that is busy with something else.
func until(atMost time.Duration, reached func() bool) {
	for deadline := time.Now().Add(atMost); !reached() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

func health(j job) (sample, error) {
	client, err := connect(j)
	if err != nil {
		return nil, err
	}
	expected, err := strconv.Atoi(j.Service[strings.LastIndex(j.Service, "-")+1:])
	if err != nil {
		return nil, err
	}
	query := func() error {
		entries, _, err := client.Health().Service(j.Service, "", false, nil)
		if err == nil && len(entries) != expected {
			err = fmt.Errorf("%d instances", len(entries))
		}
		return err
	}
	resident, _, err := memory()
	if err != nil {
		return nil, err
	}
	if _, _, err := oneAfterTheOther(query, 1, j.WarmUpMs); err != nil {
		return nil, err
	}
	latencies, cpu, err := oneAfterTheOther(query, j.AtLeast, j.MeasuredMs)
	if err != nil {
		return nil, err
	}
	_, peak, err := memory()
	if err != nil {
		return nil, err
	}
	return sample{
		"client_cpu_us_per_op": micros(cpu) / float64(max(len(latencies), 1)),
		"p50_us":               quantile(latencies, 0.5),
		"peak_rss_mib":         peak,
		"peak_growth_mib":      peak - resident,
	}, nil
}

func oneAfterTheOther(operation func() error, atLeast uint64, milliseconds int) ([]time.Duration, time.Duration, error) {
	duration := time.Duration(milliseconds) * time.Millisecond
	var latencies []time.Duration
	cpu, start := cpuTime(), time.Now()
	for turn := uint64(0); turn < atLeast || time.Since(start) < duration; turn++ {
		start := time.Now()
		if err := operation(); err != nil {
			return nil, 0, err
		}
		latencies = append(latencies, time.Since(start))
	}
	cpu = cpuTime() - cpu
	slices.Sort(latencies)
	return latencies, cpu, nil
}

// follower waits for what comes after what it saw last, as a program written with the client does.
type follower struct {
	client *api.Client
	index  uint64
	held   []*api.ServiceEntry
}

func (f *follower) next(service string) (int64, error) {
	options := &api.QueryOptions{WaitIndex: f.index, WaitTime: time.Minute, AllowStale: true}
	entries, meta, err := f.client.Health().Service(service, "", false, options)
	if err != nil {
		return 0, err
	}
	at, err := monotonic()
	f.index, f.held = meta.LastIndex, entries
	return at, err
}

func watchUpdate(j job) (sample, error) {
	client, err := connect(j)
	if err != nil {
		return nil, err
	}
	resident, _, err := memory()
	if err != nil {
		return nil, err
	}
	f := follower{client: client}
	for range 2 {
		if _, err := f.next(j.Service); err != nil {
			return nil, err
		}
	}
	first, cpu := f.index, cpuTime()
	for f.index < first+j.AtLeast {
		if _, err := f.next(j.Service); err != nil {
			return nil, err
		}
	}
	cpu = cpuTime() - cpu
	_, peak, err := memory()
	if err != nil {
		return nil, err
	}
	return sample{
		"client_cpu_us_per_update": micros(cpu) / float64(f.index-first),
		"peak_rss_mib":             peak,
		"peak_growth_mib":          peak - resident,
	}, nil
}

type told struct {
	port int
	at   int64
}

// watchPropagation lets every reader follow by queries of its own until standard input ends.
func watchPropagation(j job) error {
	client, err := connect(j)
	if err != nil {
		return err
	}
	arrivals := make(chan told, 1024)
	failures := make(chan error, j.Readers)
	for range j.Readers {
		go func() {
			f := follower{client: client}
			for {
				at, err := f.next(j.Service)
				if err == nil && len(f.held) == 0 {
					err = fmt.Errorf("no instances")
				}
				if err != nil {
					failures <- err
					return
				}
				arrivals <- told{f.held[0].Service.Port, at}
			}
		}()
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	out := json.NewEncoder(os.Stdout)
	var times []int64
	current := 0
	for {
		select {
		case <-ended:
			return nil
		case err := <-failures:
			return err
		case arrival := <-arrivals:
			if arrival.port != current {
				current, times = arrival.port, times[:0]
			}
			times = append(times, arrival.at)
			if len(times) < j.Readers {
				continue
			}
			line := struct {
				Port  int     `json:"port"`
				First int64   `json:"first"`
				Last  int64   `json:"last"`
				CPU   float64 `json:"cpu_us"`
			}{current, slices.Min(times), slices.Max(times), micros(cpuTime())}
			if err := out.Encode(line); err != nil {
				return err
			}
		}
	}
}

func cpuTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now); err != nil {
		fail(err)
	}
	return time.Duration(now.Nano())
}

// monotonic is the clock that all processes of the machine share.
func monotonic() (int64, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano(), err
}

// memory returns resident and peak memory in MiB.
func memory() (resident, peak float64, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(status), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "VmRSS:":
			resident, err = strconv.ParseFloat(fields[1], 64)
		case "VmHWM:":
			peak, err = strconv.ParseFloat(fields[1], 64)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return resident / 1024, peak / 1024, nil
}

func micros(duration time.Duration) float64 {
	return duration.Seconds() * 1e6
}

func quantile(sorted []time.Duration, part float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return micros(sorted[int(math.Round(float64(len(sorted)-1)*part))])
}
