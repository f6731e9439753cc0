// An HBONE peer made of Go's crypto/tls and golang.org/x/net/http2.
//
//	gopeer serve -listen IP:15008 -cert DIR ...      the destination of ztunneld's tunnels
//	gopeer ask -to IP:15008 -cert DIR ... SCENARIO   a client of ztunneld's server side
//	gopeer pipe -listen IP:PORT -to IP:15008 ...     TCP in, TLS with a mesh certificate out, for tools without client certificates
//
// What happens is told line by line on standard output; a failed scenario ends with status 1 and says why on standard error.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func main() {
	modes := map[string]func([]string) error{"serve": serve, "ask": ask, "pipe": pipe}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fail(errors.New("usage: gopeer serve|ask|pipe ..."))
	}
	if err := modes[os.Args[1]](os.Args[2:]); err != nil {
		fail(err)
	}
}

// What `ztctl ca issue` wrote: our certificate and the mesh's roots.
func load(dir string) (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert-chain.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return pair, nil, err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
	if err != nil {
		return pair, nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return pair, nil, errors.New("no root in " + dir)
	}
	return pair, roots, nil
}

func serverTLS(dir string) (*tls.Config, error) {
	pair, roots, err := load(dir)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}, err
}

// Go's own verification of chain and usage, then the SPIFFE URI in place of a host name.
func clientTLS(dir, identity string) (*tls.Config, error) {
	pair, roots, err := load(dir)
	verify := func(state tls.ConnectionState) error {
		between := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			between.AddCert(c)
		}
		leaf := state.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
			return err
		}
		for _, uri := range leaf.URIs {
			if uri.String() == identity {
				return nil
			}
		}
		return fmt.Errorf("certificate for %v, want %s", leaf.URIs, identity)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
		VerifyConnection: verify, NextProtos: []string{"h2"}}, err
}
