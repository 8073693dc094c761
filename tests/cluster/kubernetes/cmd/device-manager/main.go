// device-manager runs the kubelet's own device manager and its podresources API without the rest of a kubelet, so that a
// test can play pods that come and go against a device plugin, in milliseconds.
//
// It reads a request a line from standard input and writes an answer a line to standard output, both JSON (protocol.go).
// It ends when its standard input does.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"
)

// usageError is the exit code for bad usage, EX_USAGE of sysexits.h.
const usageError = 64

func main() {
	folder := flag.String("root-dir", "", "absolute path of the folder that stands for /var/lib/kubelet")
	policy := flag.String("topology-manager-policy", "none", "none, best-effort, restricted or single-numa-node")
	nodes := flag.Int("numa-nodes", 1, "NUMA nodes of the machine that is played")
	klog.InitFlags(nil)
	flag.Parse()
	if !filepath.IsAbs(*folder) {
		exit(usageError, fmt.Errorf("root-dir %q: allowed is an absolute path", *folder))
	}
	if *nodes < 1 {
		exit(usageError, fmt.Errorf("numa-nodes %d: allowed is 1 or more", *nodes))
	}
	node, err := newNode(klog.Background(), *folder, *policy, *nodes)
	if err != nil {
		exit(1, err)
	}
	if err := serve(context.Background(), node, os.Stdin, os.Stdout); err != nil {
		exit(1, err)
	}
}

func exit(code int, err error) {
	fmt.Fprintf(os.Stderr, "device-manager: %v\n", err)
	os.Exit(code)
}
