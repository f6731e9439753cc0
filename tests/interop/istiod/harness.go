package main

import (
	"fmt"
	"os"
	"sync"
)

// What Istio's test utilities ask of a test, for a program: a failure ends it.
type harness struct {
	mu       sync.Mutex
	cleanups []func()
}

func (h *harness) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"istiod:"}, args...)...)
	os.Exit(1)
}

func (h *harness) Fatalf(format string, args ...any) { h.Fatal(fmt.Sprintf(format, args...)) }
func (h *harness) Fail()                             { h.Fatal("failed") }
func (h *harness) FailNow()                          { h.Fatal("failed") }
func (h *harness) Skip(args ...any)                  { h.Fatal(args...) }
func (h *harness) Log(args ...any)                   { fmt.Fprintln(os.Stderr, args...) }
func (h *harness) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (h *harness) Helper()                           {}

func (h *harness) TempDir() string {
	dir, err := os.MkdirTemp("", "istiod")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (h *harness) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}

// The last to come is the first to go.
func (h *harness) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.cleanups) - 1; i >= 0; i-- {
		h.cleanups[i]()
	}
	h.cleanups = nil
}
