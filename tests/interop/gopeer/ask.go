package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

type client struct {
	cc        *http2.ClientConn
	authority string
}

// One CONNECT: what is written to up goes out; down is the answer's body.
type stream struct {
	up     *io.PipeWriter
	down   io.ReadCloser
	status int
	cancel context.CancelFunc
}

func (c *client) open(authority string) (*stream, error) {
	body, up := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	request := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority,
		Header: http.Header{"Baggage": {"k8s.cluster.name=Kubernetes"}}, Body: body}).WithContext(ctx)
	response, err := c.cc.RoundTrip(request)
	if err != nil {
		cancel()
		return nil, err
	}
	return &stream{up, response.Body, response.StatusCode, cancel}, nil
}

// Opens a stream to the application, which sends everything back, and checks size bytes of it, both half-closes included.
func (c *client) reflect(size int, seed int64) error {
	s, err := c.open(c.authority)
	if err != nil {
		return err
	}
	defer s.cancel()
	if s.status != 200 {
		return fmt.Errorf("status %d", s.status)
	}
	want := make([]byte, size)
	rand.New(rand.NewSource(seed)).Read(want)
	go func() {
		s.up.Write(want)
		s.up.Close()
	}()
	got, err := io.ReadAll(s.down)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes came back of %d, or others", len(got), size)
	}
	return err
}

func together(n int, fn func(i int) error) error {
	var all sync.WaitGroup
	failed := make(chan error, n)
	for i := 0; i < n; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			if err := fn(i); err != nil {
				failed <- fmt.Errorf("stream %d: %w", i, err)
			}
		}(i)
	}
	all.Wait()
	close(failed)
	return <-failed
}

// A hundred streams at once on one tunnel.
func (c *client) many() error {
	return together(100, func(i int) error { return c.reflect(64<<10, int64(i)) })
}

// More streams than the server takes at once: the rest waits for its turn, none is refused.
func (c *client) queue() error {
	if err := c.reflect(1, 0); err != nil {
		return err
	}
	fmt.Printf("limit %d\n", c.cc.State().MaxConcurrentStreams)
	var open, most int32
	return together(230, func(i int) error {
		s, err := c.open(c.authority)
		if err != nil {
			return err
		}
		defer s.cancel()
		if now := atomic.AddInt32(&open, 1); now > atomic.LoadInt32(&most) {
			atomic.StoreInt32(&most, now)
		}
		time.Sleep(200 * time.Millisecond) // held, so that the limit is met
		s.up.Write([]byte("x"))
		s.up.Close()
		got, err := io.ReadAll(s.down)
		atomic.AddInt32(&open, -1)
		if err == nil && string(got) != "x" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// A PING every 50 ms while 64 MiB go each way: the slowest PONG is told.
func (c *client) pings() error {
	done := make(chan struct{})
	slowest := make(chan time.Duration, 1)
	go func() {
		var worst time.Duration
		n := 0
		for {
			select {
			case <-done:
				fmt.Printf("pings %d\n", n)
				slowest <- worst
				return
			case <-time.After(50 * time.Millisecond):
			}
			start := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := c.cc.Ping(ctx); err != nil {
				worst = time.Hour
			} else if took := time.Since(start); took > worst {
				worst = took
			}
			cancel()
			n++
		}
	}()
	err := together(4, func(i int) error { return c.reflect(16<<20, int64(i)) })
	close(done)
	fmt.Printf("slowest %d ms\n", (<-slowest).Milliseconds())
	return err
}

// The server ends its direction first; ours goes on (the application there reports what it got).
func (c *client) serverFirst() error {
	s, err := c.open(c.authority)
	if err != nil {
		return err
	}
	defer s.cancel()
	got, err := io.ReadAll(s.down)
	if err != nil || string(got) != "server is done" {
		return fmt.Errorf("%q %w", got, err)
	}
	if _, err := s.up.Write(make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("writing after the server's end: %w", err)
	}
	s.up.Close()
	time.Sleep(300 * time.Millisecond) // the connection is dropped when we end: let the bytes out
	return nil
}

// RST_STREAM(CANCEL) on some streams leaves the others and the tunnel alone.
func (c *client) cancel() error {
	kept, err := c.open(c.authority)
	if err != nil {
		return err
	}
	for i := 0; i < 50; i++ {
		s, err := c.open(c.authority)
		if err != nil {
			return err
		}
		s.up.Write([]byte("unfinished"))
		s.cancel()
	}
	kept.up.Write([]byte("kept"))
	kept.up.Close()
	got, err := io.ReadAll(kept.down)
	if err != nil || string(got) != "kept" {
		return fmt.Errorf("%q %w", got, err)
	}
	return c.reflect(1<<20, 1)
}

// The server says GOAWAY with streams open: they go on, the tunnel closes with the last.
func (c *client) goaway() error {
	var open []*stream
	for i := 0; i < 5; i++ {
		s, err := c.open(c.authority)
		if err != nil {
			return err
		}
		open = append(open, s)
	}
	fmt.Println("open")
	bufio.NewReader(os.Stdin).ReadString('\n') // the test lets the daemon drain now
	for end := time.Now().Add(10 * time.Second); !c.cc.State().Closing; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("no GOAWAY")
		}
	}
	for _, s := range open {
		s.up.Write([]byte("after goaway"))
		s.up.Close()
		got, err := io.ReadAll(s.down)
		if err != nil || string(got) != "after goaway" {
			return fmt.Errorf("%q %w", got, err)
		}
	}
	for end := time.Now().Add(10 * time.Second); !c.cc.State().Closed; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("the tunnel stays open")
		}
	}
	return nil
}

// The status of one CONNECT.
func (c *client) status() error {
	s, err := c.open(c.authority)
	if err != nil {
		return err
	}
	defer s.cancel()
	fmt.Printf("status %d\n", s.status)
	return nil
}

func ask(args []string) error {
	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	to := flags.String("to", "", "address")
	dir := flags.String("cert", "", "directory of the certificate")
	identity := flags.String("identity", "", "expected of the other end")
	authority := flags.String("authority", "", "target of CONNECT")
	flags.Parse(args)
	config, err := clientTLS(*dir, *identity)
	if err != nil {
		return err
	}
	conn, err := tls.Dial("tcp", *to, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	fmt.Printf("tls %x %s %s\n", state.Version, tls.CipherSuiteName(state.CipherSuite), state.NegotiatedProtocol)
	cc, err := (&http2.Transport{DisableCompression: true, StrictMaxConcurrentStreams: true}).NewClientConn(conn)
	if err != nil {
		return err
	}
	c := &client{cc, *authority}
	scenarios := map[string]func() error{
		"echo": func() error { return c.reflect(8<<20, 7) }, "many": c.many, "queue": c.queue, "pings": c.pings,
		"server-first": c.serverFirst, "cancel": c.cancel, "goaway": c.goaway, "status": c.status,
	}
	scenario := scenarios[flags.Arg(0)]
	if scenario == nil {
		return errors.New("no such scenario")
	}
	return scenario()
}
