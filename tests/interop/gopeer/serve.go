package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/http2"
)

type counter struct { // of one tunnel
	number int32
	open   int32
}

type key struct{}

var tunnels int32

// A stream's response with every write on the wire at once.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// The port of the authority says what the stream is for.
func connect(w http.ResponseWriter, r *http.Request) {
	t := r.Context().Value(key{}).(*counter)
	open := atomic.AddInt32(&t.open, 1)
	defer atomic.AddInt32(&t.open, -1)
	fmt.Printf("stream tunnel=%d open=%d method=%s authority=%s client=%s\n", t.number, open, r.Method, r.Host,
		r.TLS.PeerCertificates[0].URIs[0])
	if r.Method != http.MethodConnect || r.Header.Get("baggage") == "" || r.Header.Get("traceparent") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if port == "401" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("server", "gopeer") // date comes by itself
	w.WriteHeader(http.StatusOK)
	out := flusher{w}
	w.(http.Flusher).Flush()
	switch port {
	case "7": // echo
		io.Copy(out, r.Body)
	case "9": // ends without having read the request: END_STREAM, then RST_STREAM(NO_ERROR)
		io.WriteString(out, "bye")
	case "19": // everything, then an answer of eight MiB
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(out, "%d\n", n)
		io.Copy(out, bytes.NewReader(make([]byte, 8<<20)))
	case "99": // RST_STREAM(INTERNAL_ERROR) in the midst: once the client has spoken, so that its connect is behind it
		r.Body.Read(make([]byte, 1))
		io.WriteString(out, "part")
		panic(http.ErrAbortHandler)
	default:
		dial(out, r)
	}
}

func dial(out io.Writer, r *http.Request) {
	c, err := net.Dial("tcp", r.Host)
	if err != nil {
		return
	}
	defer c.Close()
	var up sync.WaitGroup
	up.Add(1)
	go func() {
		defer up.Done()
		io.Copy(c, r.Body)
		c.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(out, c)
	up.Wait()
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", "", "address")
	dir := flags.String("cert", "", "directory of the certificate")
	streams := flags.Uint("streams", 250, "SETTINGS_MAX_CONCURRENT_STREAMS")
	window := flags.Int("window", 1<<20, "receive window of a stream and of the tunnel")
	flags.Parse(args)
	config, err := serverTLS(*dir)
	if err != nil {
		return err
	}
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGUSR1)
	for { // SIGUSR1: GOAWAY on every tunnel, and a new server in place of this one
		ln, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: http.HandlerFunc(connect), TLSConfig: config.Clone()}
		server.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key{}, &counter{number: atomic.AddInt32(&tunnels, 1)})
		}
		server.ConnState = func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				fmt.Println("closed")
			}
		}
		settings := &http2.Server{MaxConcurrentStreams: uint32(*streams), MaxUploadBufferPerStream: int32(*window),
			MaxUploadBufferPerConnection: int32(*window), MaxReadFrameSize: 16384}
		if err := http2.ConfigureServer(server, settings); err != nil {
			return err
		}
		fmt.Println("listening")
		go func() {
			<-restart
			go server.Shutdown(context.Background()) // closes the listener first, then waits for the streams
		}()
		if err := server.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
	}
}
