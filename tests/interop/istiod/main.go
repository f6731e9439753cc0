// The code of Istio's control plane as a test's peer: discovery server with the ambient index, certificate authority with the node
// authorizer, token review, over TLS. The Kubernetes API beneath it is Istio's own fake client.
//
//	istiod -dir DIR -listen IP:15012 [-objects FILE] [-max-age 60s]
//
// DIR keeps what outlives a restart: the authority (as in a cacerts secret) and the key of the tokens. FILE holds objects, one JSON
// document a line, that are there from the start. PILOT_ENABLE_AMBIENT=true and CA_TRUSTED_NODE_ACCOUNTS=istio-system/ztunnel must be
// in the environment: Istio reads them before main.
//
// Commands come on standard input, one a line; each is answered by one line on standard output, "ok ..." or "error ...":
//
//	apply JSON                      create or update an object; what a defaulting API server would set must be there
//	delete KIND NAMESPACE/NAME
//	serve | stop                    open the port; close it and every connection
//	token NAMESPACE/POD [AUDIENCE [SECONDS]]
//	ca works | fails | hangs        what becomes of certificate requests before they reach the authority
//	rotate | retire                 a new root beside the old one signs; only the newest root remains
//	debug PATH                      a page of istiod's debug interface, for example /debug/syncz
//
// The end of standard input ends the program.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pkg/log"
)

const lineMax = 1 << 20

func main() {
	dir := flag.String("dir", "", "what outlives a restart")
	listen := flag.String("listen", "", "address and port of the TLS listener")
	objects := flag.String("objects", "", "objects that are there from the start")
	maxAge := flag.Duration("max-age", 0, "how long a connection lives; 0: for ever")
	flag.Parse()
	if err := run(*dir, *listen, *objects, *maxAge); err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}

func run(dir, listen, objects string, maxAge time.Duration) error {
	if dir == "" || listen == "" || flag.NArg() > 0 {
		return errors.New("usage: istiod -dir DIR -listen IP:PORT [-objects FILE] [-max-age DURATION]")
	}
	if !features.EnableAmbient || len(features.CATrustedNodeAccounts) == 0 {
		return errors.New("PILOT_ENABLE_AMBIENT and CA_TRUSTED_NODE_ACCOUNTS must be in the environment")
	}
	logging := log.DefaultOptions()
	logging.OutputPaths = []string{"stderr"} // standard output is for answers
	logging.SetDefaultOutputLevel("krt", log.WarnLevel)
	if err := log.Configure(logging); err != nil {
		return err
	}
	authority, err := openAuthority(dir)
	if err != nil {
		return err
	}
	tokens, err := openTokens(dir)
	if err != nil {
		return err
	}
	initial, err := readObjects(objects)
	if err != nil {
		return err
	}
	mesh := newMesh(initial, tokens)
	defer mesh.close()
	server, err := newServer(mesh, authority, tokens, listen, maxAge)
	if err != nil {
		return err
	}
	defer server.stop()
	fmt.Println("ok")
	return obey(mesh, authority, tokens, server)
}

func obey(mesh *mesh, authority *authority, tokens *tokens, server *server) error {
	commands := map[string]func(string) (string, error){
		"apply":  func(text string) (string, error) { return "", mesh.apply([]byte(text)) },
		"delete": func(text string) (string, error) { return "", mesh.remove(text) },
		"serve":  func(string) (string, error) { return "", server.serve() },
		"stop":   func(string) (string, error) { server.stop(); return "", nil },
		"token":  func(text string) (string, error) { return tokens.issue(mesh.client(), strings.Fields(text)) },
		"ca":     func(text string) (string, error) { return "", server.setMode(text) },
		"rotate": func(string) (string, error) { return "", authority.rotate() },
		"retire": func(string) (string, error) { return "", authority.retire() },
		"debug":  mesh.debug,
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, lineMax)
	for in.Scan() {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		command := commands[verb]
		if command == nil {
			fmt.Println("error no such command:", verb)
			continue
		}
		if text, err := command(rest); err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok", text)
		}
	}
	return in.Err()
}
