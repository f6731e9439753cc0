// istio-cni's node agent without its cluster: what its informers and its CNI plugin would say comes as JSON, a line each, and each is
// answered by a line when it is done. The agent works in the network namespace where it was started as in the node's.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"interop/cni/nodeagent"

	"istio.io/istio/pkg/log"
)

type command struct {
	ID          int               `json:"id"`
	Do          string            `json:"do"` // start, add, remove, stop
	UID         string            `json:"uid"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	SA          string            `json:"sa"`
	Netns       string            `json:"netns"`
	IPs         []string          `json:"ips"`
	Annotations map[string]string `json:"annotations"`
	Deleted     bool              `json:"deleted"`   // remove: the pod ended, its namespace needs no cleaning
	TimeoutMs   int               `json:"timeoutMs"` // add: how long the plugin would wait; 0 = for ever
	Pods        []command         `json:"pods"`      // start: those that were enrolled before
}

type reply struct {
	ID          int      `json:"id"`
	Error       string   `json:"error"`
	Connections int      `json:"connections"`
	Patches     []string `json:"patches"` // of annotations, since the last reply
}

type program struct {
	agent   *nodeagent.Agent
	mu      sync.Mutex
	patches []string
	out     *json.Encoder
}

func (p *program) annotate(pod, patch string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patches = append(p.patches, pod+" "+patch)
}

func (p *program) answer(c command, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := reply{ID: c.ID, Connections: p.agent.Connections(), Patches: p.patches}
	if err != nil {
		r.Error = err.Error()
	}
	p.patches = nil
	p.out.Encode(r)
}

func podOf(c command) (*corev1.Pod, []netip.Addr) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: c.Name, Namespace: c.Namespace, UID: types.UID(c.UID), Annotations: c.Annotations},
		Spec:       corev1.PodSpec{ServiceAccountName: c.SA},
	}
	var ips []netip.Addr
	for _, ip := range c.IPs {
		ips = append(ips, netip.MustParseAddr(ip))
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return pod, ips
}

// start is what Server.Start does: the pods that are there, then connections are accepted.
func (p *program) start(c command) error {
	var pods []*corev1.Pod
	for _, known := range c.Pods {
		pod, _ := podOf(known)
		pods = append(pods, pod)
		if err := p.agent.Recall(pod, known.Netns); err != nil {
			return err
		}
	}
	err := p.agent.ConstructInitialSnapshot(pods)
	p.agent.Start(context.Background())
	return err
}

func (p *program) do(c command) error {
	pod, ips := podOf(c)
	switch c.Do {
	case "start":
		return p.start(c)
	case "add":
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if c.TimeoutMs > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(c.TimeoutMs)*time.Millisecond)
		}
		defer cancel()
		return p.agent.AddPodToMesh(ctx, pod, ips, c.Netns)
	case "remove":
		return p.agent.RemovePodFromMesh(context.Background(), pod, c.Deleted)
	case "status":
		return nil
	}
	panic("unknown command " + c.Do)
}

func main() {
	var args nodeagent.AmbientArgs
	flag.StringVar(&args.ServerSocket, "socket", "", "where ZDS is served")
	flag.BoolVar(&args.DNSCapture, "dns", true, "AMBIENT_DNS_CAPTURE")
	flag.BoolVar(&args.EnableIPv6, "ipv6", true, "AMBIENT_IPV6")
	flag.BoolVar(&args.ReconcilePodRulesOnStartup, "reconcile", true, "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP")
	flag.BoolVar(&args.NativeNftables, "nftables", false, "NATIVE_NFTABLES")
	flag.StringVar(&args.ForceIptablesBinary, "iptables", "", "FORCE_IPTABLES_BINARY")
	flag.Parse()
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"} // stdout is ours
	if err := log.Configure(options); err != nil {
		panic(err)
	}
	p := &program{out: json.NewEncoder(os.Stdout)}
	agent, err := nodeagent.NewAgent(args, p.annotate)
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	p.agent = agent
	p.answer(command{}, nil) // the socket is there
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			panic(err)
		}
		go func() { p.answer(c, p.do(c)) }()
	}
}
