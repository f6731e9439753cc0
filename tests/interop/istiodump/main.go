// What `istioctl ztunnel-config ... -f` prints for a config dump on standard input, by istioctl's own writer.
//
//	istiodump all|workload|service|policy|certificate|connections [json]
package main

import (
	"fmt"
	"io"
	"os"

	"istio.io/istio/istioctl/pkg/writer/ztunnel/configdump"
)

func render(w *configdump.ConfigWriter, what string, json bool) error {
	switch what {
	case "all":
		if json {
			return w.PrintFullDump("json")
		}
		return w.PrintFullSummary(true)
	case "workload":
		if json {
			return w.PrintWorkloadDump(configdump.WorkloadFilter{}, "json")
		}
		return w.PrintWorkloadSummary(configdump.WorkloadFilter{})
	case "service":
		if json {
			return w.PrintServiceDump(configdump.ServiceFilter{}, "json")
		}
		return w.PrintServiceSummary(configdump.ServiceFilter{})
	case "policy":
		if json {
			return w.PrintPolicyDump(configdump.PolicyFilter{}, "json")
		}
		return w.PrintPolicySummary(configdump.PolicyFilter{})
	case "certificate":
		if json {
			return w.PrintSecretDump("json")
		}
		return w.PrintSecretSummary()
	case "connections":
		if json {
			return w.PrintConnectionsDump(configdump.ConnectionsFilter{}, "json")
		}
		return w.PrintConnectionsSummary(configdump.ConnectionsFilter{})
	}
	return fmt.Errorf("unknown table %q", what)
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("usage: istiodump TABLE [json] <dump")
	}
	dump, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	w := &configdump.ConfigWriter{Stdout: os.Stdout, FullDump: dump}
	if err := w.Prime(dump); err != nil {
		return err
	}
	return render(w, os.Args[1], len(os.Args) > 2 && os.Args[2] == "json")
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "istiodump:", err)
		os.Exit(1)
	}
}
