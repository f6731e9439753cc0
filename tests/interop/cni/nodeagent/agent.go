// This file is compiled as a part of istio.io/istio/cni/pkg/nodeagent (see build): it puts the agent's unexported parts together the
// way initMeshDataplane does, and takes the place of what needs a cluster (server.go, server_linux.go, informers.go, ...).
package nodeagent

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"istio.io/istio/cni/pkg/addressset"
	"istio.io/istio/cni/pkg/config"
	"istio.io/istio/cni/pkg/constants"
	"istio.io/istio/cni/pkg/iptables"
	"istio.io/istio/cni/pkg/scopes"
	"istio.io/istio/cni/pkg/trafficmanager"
	dep "istio.io/istio/tools/istio-iptables/pkg/dependencies"
)

var log = scopes.CNIAgent

// MeshDataplane is declared in server.go, which is left out.
type MeshDataplane interface {
	ConstructInitialSnapshot(existingAmbientPods []*corev1.Pod) error
	Start(ctx context.Context)
	AddPodToMesh(ctx context.Context, pod *corev1.Pod, podIPs []netip.Addr, netNs string) error
	RemovePodFromMesh(ctx context.Context, pod *corev1.Pod, isDelete bool) error
	SyncHostProbeIPSet(pod *corev1.Pod, podIPs []netip.Addr) error
	Stop(skipCleanup bool)
}

// Agent is the node agent without its informers.
type Agent struct {
	MeshDataplane
	cache *podNetnsCache
	zds   *ztunnelServer
	host  trafficmanager.TrafficRuleManager
}

// NewAgent listens on args.ServerSocket at once and accepts after Start. Patches of pods (their annotations) go to annotate.
func NewAgent(args AmbientArgs, annotate func(pod, patch string)) (*Agent, error) {
	cfg := func(reconcile bool) *config.AmbientConfig {
		return &config.AmbientConfig{RedirectDNS: args.DNSCapture, EnableIPv6: args.EnableIPv6, Reconcile: reconcile,
			HostProbeSNATAddress: HostProbeSNATIP, HostProbeV6SNATAddress: HostProbeSNATIPV6}
	}
	constants.HostMountsPath = "/"
	set, err := addressset.New(args.NativeNftables, args.EnableIPv6)
	if err != nil {
		return nil, err
	}
	set.Flush()
	a := &Agent{cache: newPodNetnsCache(openNetnsInRoot(constants.HostMountsPath))}
	a.zds, err = newZtunnelServer(args.ServerSocket, a.cache, 5*time.Second)
	if err != nil {
		return nil, err
	}
	var pod trafficmanager.TrafficRuleManager
	a.host, pod, err = trafficmanager.NewTrafficRuleManager(&trafficmanager.TrafficRuleManagerConfig{
		NativeNftables: args.NativeNftables, HostConfig: cfg(false), PodConfig: cfg(args.ReconcilePodRulesOnStartup),
		HostDeps: dependencies(false, args), PodDeps: dependencies(UseScopedIptablesLegacyLocking, args), NlDeps: iptables.RealNlDeps(),
	})
	if err != nil {
		return nil, err
	}
	if !args.NativeNftables {
		a.host.DeleteHostRules()
	}
	if err := a.host.CreateHostRulesForHealthChecks(); err != nil {
		return nil, err
	}
	finder, err := NewPodNetnsProcFinder(nodeProc{os.DirFS("/proc")})
	if err != nil {
		return nil, err
	}
	a.MeshDataplane = &meshDataplane{kubeClient: cluster{annotate: annotate}, netServer: newNetServer(a.zds, a.cache, pod, finder),
		hostTrafficManager: a.host, hostAddrSet: set}
	return a, nil
}

// nodeProc is /proc, with the namespace that the agent was started in as that of process 1: the node's, where no pod is.
type nodeProc struct{ fs.FS }

func (p nodeProc) Open(name string) (fs.File, error) {
	if name == "1/ns/net" {
		name = "self/ns/net"
	}
	return p.FS.Open(name)
}

func dependencies(scopedLocks bool, args AmbientArgs) *dep.RealDependencies {
	return &dep.RealDependencies{UsePodScopedXtablesLock: scopedLocks, ForceIptablesBinary: args.ForceIptablesBinary}
}

// Recall puts a pod of an earlier run into the cache: with its namespace, or without (path "").
func (a *Agent) Recall(pod *corev1.Pod, path string) error {
	a.cache.Ensure(string(pod.UID))
	if path == "" {
		return nil
	}
	_, err := a.cache.UpsertPodCache(pod, path)
	return err
}

// Connections counts the ztunnels that are connected.
func (a *Agent) Connections() int {
	return a.zds.conns.len()
}

// cluster, coreV1 and pods are a Kubernetes client that knows one call: to patch a pod.
type cluster struct {
	kubernetes.Interface
	annotate func(pod, patch string)
}

func (c cluster) CoreV1() typedv1.CoreV1Interface {
	return coreV1{annotate: c.annotate}
}

type coreV1 struct {
	typedv1.CoreV1Interface
	annotate func(pod, patch string)
}

func (c coreV1) Pods(string) typedv1.PodInterface {
	return pods{annotate: c.annotate}
}

type pods struct {
	typedv1.PodInterface
	annotate func(pod, patch string)
}

func (p pods) Patch(_ context.Context, name string, _ types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Pod, error) {
	p.annotate(name, string(data))
	return &corev1.Pod{}, nil
}
