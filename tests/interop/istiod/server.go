package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	istiogrpc "istio.io/istio/pilot/pkg/grpc"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/keepalive"
	"istio.io/istio/pkg/kube/multicluster"
	"istio.io/istio/pkg/security"
	"istio.io/istio/pkg/xds"
	caserver "istio.io/istio/security/pkg/server/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate/kubeauth"
)

// The secure port of istiod: discovery and certificates behind one listener, opened and closed at will.
type server struct {
	mesh      *mesh
	authority *authority
	ca        *caserver.Server
	address   string
	maxAge    time.Duration

	mu   sync.Mutex
	grpc *grpc.Server // nil while stopped
	mode string       // what becomes of certificate requests
}

func newServer(mesh *mesh, authority *authority, tokens *tokens, address string, maxAge time.Duration) (*server, error) {
	s := &server{mesh: mesh, authority: authority, address: address, maxAge: maxAge, mode: "works"}
	authenticators := []security.Authenticator{
		kubeauth.NewKubeJWTAuthenticator(meshwatcher.NewTestWatcher(nil), mesh.client().Kube(), clusterID, nil, nil),
	}
	mesh.discovery().Authenticators = authenticators
	// the node authorizer is told of its cluster after it has been made, and its informer is started with that cluster's client
	clusters := multicluster.NewFakeController()
	var err error
	if s.ca, err = caserver.New(authority, defaultLifeTTL, authenticators, clusters); err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	mesh.harness.Cleanup(func() { close(stop) })
	clusters.Add(clusterID, mesh.client(), stop)
	mesh.client().RunAndWait(stop)
	return s, nil
}

func (s *server) serve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grpc != nil {
		return nil
	}
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	alive := keepalive.DefaultOption()
	if s.maxAge > 0 {
		alive.MaxServerConnectionAge = s.maxAge
		alive.MaxServerConnectionAgeGrace = time.Second // Istio's is ten
	}
	options := istiogrpc.ServerOptions(alive, xds.RecordRecvSize, s.intercept)
	options = append(options, grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: s.authority.certificate,
		ClientAuth:     tls.RequestClientCert,
		MinVersion:     tls.VersionTLS12,
	})))
	s.grpc = grpc.NewServer(options...)
	s.mesh.discovery().Register(s.grpc)
	s.ca.Register(s.grpc)
	go s.grpc.Serve(listener)
	return nil
}

func (s *server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grpc != nil {
		s.grpc.Stop()
		s.grpc = nil
	}
}

func (s *server) setMode(mode string) error {
	if mode != "works" && mode != "fails" && mode != "hangs" {
		return fmt.Errorf("ca works|fails|hangs, not %q", mode)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = mode
	return nil
}

// The only unary method here is CreateCertificate.
func (s *server) intercept(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	s.mu.Lock()
	mode := s.mode
	s.mu.Unlock()
	switch mode {
	case "fails":
		return nil, status.Error(codes.Unavailable, "the authority is down")
	case "hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return handler(ctx, request)
}
