// kubernetes is every part of a Kubernetes cluster that is not the container runtime, in one program, so that the code
// they share is compiled, linked and loaded once: kubernetes COMPONENT [FLAGS].
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of requests to the API server
	_ "k8s.io/component-base/metrics/prometheus/version"  // the metric kubernetes_build_info
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// usageError is the exit code for bad usage, EX_USAGE of sysexits.h.
const usageError = 64

// components are made only when they are called for: each registers its flags and features as it is made.
var components = map[string]func() *cobra.Command{
	"etcd":                    newEtcdCommand,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"loopback":                newLoopbackCommand,
}

func main() {
	name := ""
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	component, known := components[name]
	if !known {
		fmt.Fprintf(os.Stderr, "kubernetes: component %q: allowed are %s\n", name, strings.Join(slices.Sorted(maps.Keys(components)), ", "))
		os.Exit(usageError)
	}
	// The components read the command line themselves, and expect their own name and flags only.
	os.Args = append([]string{name}, os.Args[2:]...)
	os.Exit(cli.Run(component()))
}
