package main

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"sync"
	"time"

	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/util"
)

const (
	rootLifetime    = 10 * 365 * 24 * time.Hour
	defaultLifeTTL  = 24 * time.Hour
	maxLifeTTL      = 90 * 24 * time.Hour
	keyBits         = 2048
	istiodName      = "istiod.istio-system.svc"
	signingCertFile = "ca-cert.pem"
	signingKeyFile  = "ca-key.pem"
	rootFile        = "root-cert.pem"
)

// Istio's certificate authority with its own files: a self-signed root that signs, and the bundle of roots to trust.
type authority struct {
	*ca.IstioCA
	dir string

	mu   sync.Mutex
	pair *tls.Certificate // of istiod itself; nil after a rotation
}

func openAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	if _, err := os.Stat(a.file(signingKeyFile)); os.IsNotExist(err) {
		if err := a.renew(nil); err != nil {
			return nil, err
		}
	}
	options, err := ca.NewPluggedCertIstioCAOptions(ca.SigningCAFileBundle{
		SigningCertFile: a.file(signingCertFile),
		SigningKeyFile:  a.file(signingKeyFile),
		RootCertFile:    a.file(rootFile),
	}, defaultLifeTTL, maxLifeTTL, keyBits)
	if err != nil {
		return nil, err
	}
	a.IstioCA, err = ca.NewIstioCA(options)
	return a, err
}

func (a *authority) file(name string) string {
	return filepath.Join(a.dir, name)
}

// Writes a new root that signs, with these others to trust behind it. The root file comes last and in one step: clients watch it.
func (a *authority) renew(others []byte) error {
	cert, key, err := util.GenCertKeyFromOptions(util.CertOptions{
		TTL: rootLifetime, Org: "cluster.local", IsCA: true, IsSelfSigned: true, RSAKeySize: keyBits,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(a.file(signingKeyFile), key, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(a.file(signingCertFile), cert, 0o644); err != nil {
		return err
	}
	return a.writeRoots(append(cert, others...))
}

func (a *authority) writeRoots(roots []byte) error {
	if err := os.WriteFile(a.file(rootFile)+".new", roots, 0o644); err != nil {
		return err
	}
	return os.Rename(a.file(rootFile)+".new", a.file(rootFile))
}

// Takes over what is in the files, as istiod does when its secret changes.
func (a *authority) reload() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pair = nil
	return a.GetCAKeyCertBundle().UpdateVerifiedKeyCertBundleFromFile(
		a.file(signingCertFile), a.file(signingKeyFile), nil, a.file(rootFile), "")
}

func (a *authority) rotate() error {
	if err := a.renew(a.GetCAKeyCertBundle().GetRootCertPem()); err != nil {
		return err
	}
	return a.reload()
}

func (a *authority) retire() error {
	cert, err := os.ReadFile(a.file(signingCertFile))
	if err != nil {
		return err
	}
	if err := a.writeRoots(cert); err != nil {
		return err
	}
	return a.reload()
}

// Istiod's own certificate, by its own authority.
func (a *authority) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pair == nil {
		cert, key, err := a.GenKeyCert([]string{istiodName}, defaultLifeTTL, false)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		a.pair = &pair
	}
	return a.pair, nil
}
