package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	security "istio.io/client-go/pkg/apis/security/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"istio.io/istio/pilot/pkg/xds"
	pilot "istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/controllers"
	"istio.io/istio/pkg/kube/kclient"
)

const clusterID = "Kubernetes"

// The world that istiod looks at, and the discovery server that looks.
type mesh struct {
	fake    *pilot.FakeDiscoveryServer
	harness *harness
	kinds   map[string]kind
}

// The two ways to change the objects of one kind.
type kind struct {
	apply  func(runtime.Object) error
	remove func(name, namespace string) error
}

func kindOf[T controllers.ComparableObject](client kube.Client) kind {
	writer := kclient.NewWriteClient[T](client)
	return kind{
		apply: func(object runtime.Object) error {
			_, err := kclient.CreateOrUpdate(writer, object.(T))
			return err
		},
		remove: writer.Delete,
	}
}

func newMesh(initial []runtime.Object, tokens *tokens) *mesh {
	h := &harness{}
	fake := pilot.NewFakeDiscoveryServer(h, pilot.FakeOptions{
		DefaultClusterName: clusterID,
		KubernetesObjects:  initial,
		DebounceTime:       10 * time.Millisecond,
		KubeClientModifier: tokens.reviewFor,
	})
	client := fake.KubeClient()
	return &mesh{fake: fake, harness: h, kinds: map[string]kind{
		"Namespace":           kindOf[*core.Namespace](client),
		"Node":                kindOf[*core.Node](client),
		"Pod":                 kindOf[*core.Pod](client),
		"Service":             kindOf[*core.Service](client),
		"ServiceEntry":        kindOf[*networking.ServiceEntry](client),
		"WorkloadEntry":       kindOf[*networking.WorkloadEntry](client),
		"AuthorizationPolicy": kindOf[*security.AuthorizationPolicy](client),
		"PeerAuthentication":  kindOf[*security.PeerAuthentication](client),
		"GatewayClass":        kindOf[*gateway.GatewayClass](client),
		"Gateway":             kindOf[*gateway.Gateway](client),
	}}
}

func (m *mesh) close() {
	m.harness.end()
}

func (m *mesh) client() kube.Client {
	return m.fake.KubeClient()
}

func (m *mesh) discovery() *xds.DiscoveryServer {
	return m.fake.Discovery
}

func decode(text []byte) (runtime.Object, string, error) {
	object, gvk, err := kube.IstioCodec.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		return nil, "", err
	}
	return object, gvk.Kind, nil
}

// One object a line.
func readObjects(path string) ([]runtime.Object, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var objects []runtime.Object
	for line := range bytes.Lines(text) {
		object, _, err := decode(line)
		if err != nil {
			return nil, fmt.Errorf("%s: object %d: %w", path, len(objects)+1, err)
		}
		objects = append(objects, object)
	}
	return objects, nil
}

func (m *mesh) kindNamed(name string) (kind, error) {
	k, known := m.kinds[name]
	if !known {
		return k, fmt.Errorf("no such kind: %s", name)
	}
	return k, nil
}

func (m *mesh) apply(text []byte) error {
	object, name, err := decode(text)
	if err != nil {
		return err
	}
	k, err := m.kindNamed(name)
	if err != nil {
		return err
	}
	return k.apply(object)
}

func (m *mesh) remove(text string) error {
	name, key, _ := strings.Cut(text, " ")
	k, err := m.kindNamed(name)
	if err != nil {
		return err
	}
	namespace, object, found := strings.Cut(key, "/")
	if !found {
		return fmt.Errorf("not NAMESPACE/NAME: %q", key)
	}
	return k.remove(object, namespace)
}

// A debug page on one line.
func (m *mesh) debug(path string) (string, error) {
	answer := httptest.NewRecorder()
	request, err := http.NewRequest(http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	m.fake.DiscoveryDebug.ServeHTTP(answer, request)
	if answer.Code != http.StatusOK {
		return "", fmt.Errorf("%s: status %d: %s", path, answer.Code, answer.Body)
	}
	var line bytes.Buffer
	if json.Compact(&line, answer.Body.Bytes()) != nil { // a page of plain text
		return strings.TrimSpace(strings.ReplaceAll(answer.Body.String(), "\n", " ")), nil
	}
	return line.String(), nil
}
